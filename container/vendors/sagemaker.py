"""What SageMaker's SDK, its toolkits and the classic bring-your-own-container examples set, whatever the image.

Knows these names and what each means here; what the platform itself sets is read elsewhere, but for what is refused.
Sources: aws/sagemaker-python-sdk, aws/sagemaker-inference-toolkit (environment.py), the TensorFlow image of
aws/deep-learning-containers (serve.py), aws/model-hosting-container-standards (supervisor/models.py,
sagemaker/config.py) and scikit_bring_your_own of aws/amazon-sagemaker-examples.
"""

from container.vendors.rules import accepted, boolean, bytes_to_mib, integer, log_level, no_effect, refused, table, to


def _restarts(text: str) -> str | None:
    """None for "as it is": whoever wants no recovery wants no restart."""
    return None if boolean(text) == "true" else "0"


RULES = table(
    to("num_workers", "SAGEMAKER_MODEL_SERVER_WORKERS MODEL_SERVER_WORKERS SAGEMAKER_GUNICORN_WORKERS", integer),
    to(
        "request_timeout_s",
        "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS SAGEMAKER_MODEL_SERVER_TIMEOUT MODEL_SERVER_TIMEOUT "
        "SAGEMAKER_GUNICORN_TIMEOUT_SECONDS ENDPOINT_SERVER_TIMEOUT",
        integer,
    ),
    to("start_timeout_s", "SAGEMAKER_STARTUP_TIMEOUT", integer),
    to("log_level", "SAGEMAKER_CONTAINER_LOG_LEVEL", log_level),
    to("max_body_mb", "MMS_MAX_REQUEST_SIZE TS_MAX_REQUEST_SIZE", bytes_to_mib, "in bytes, at most 1 GiB"),
    no_effect(
        "gevent workers have no threads, and nginx there is none",
        "SAGEMAKER_GUNICORN_THREADS SAGEMAKER_GUNICORN_WORKER_CLASS SAGEMAKER_NGINX_PROXY_READ_TIMEOUT_SECONDS "
        "SAGEMAKER_GUNICORN_LOGLEVEL",
        "1 gevent",
    ),
    to("max_engine_restarts", "PROCESS_AUTO_RECOVERY", _restarts, "false is 0"),
    to("max_engine_restarts", "PROCESS_MAX_START_RETRIES", integer),
    no_effect("models are downloaded to `download_dir` only", "MODEL_CACHE_ROOT"),
    no_effect("pip is told of an index by its own variables, or STANDARD_PIP_ARGS", "CA_REPOSITORY_ARN"),
    accepted("it says that the container runs on SageMaker", "SAGEMAKER_ENV"),
    no_effect("the supervisor is another one", "SUPERVISOR_*"),
    no_effect("sessions live in the engine", "SAGEMAKER_SESSIONS_PATH"),
    no_effect("adapters are not served", "SAGEMAKER_MAX_NUMBER_OF_ADAPTERS_IN_MEMORY SAGEMAKER_ENABLE_LOAD_AWARE"),
    refused("there are no multi-model endpoints", "SAGEMAKER_MULTI_MODEL"),
    no_effect("answers have no limit of length", "MMS_MAX_RESPONSE_SIZE TS_MAX_RESPONSE_SIZE"),
    no_effect(
        "one engine serves all workers",
        "MMS_DEFAULT_WORKERS_PER_MODEL TS_DEFAULT_WORKERS_PER_MODEL MMS_JOB_QUEUE_SIZE TS_JOB_QUEUE_SIZE "
        "MMS_DEFAULT_RESPONSE_TIMEOUT TS_DEFAULT_RESPONSE_TIMEOUT MMS_NETTY_CLIENT_THREADS MMS_NUMBER_OF_NETTY_THREADS",
        "1",
    ),
)
