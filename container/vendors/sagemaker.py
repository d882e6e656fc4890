"""What SageMaker's SDK and the classic bring-your-own-container examples set, whatever the image.

Knows these names and what each means here; names that the platform itself sets (SAGEMAKER_BIND_TO_PORT,
SAGEMAKER_BATCH, …) are none of its business. Sources: aws/sagemaker-python-sdk, aws/sagemaker-inference-toolkit
(environment.py), the TensorFlow image of aws/deep-learning-containers (serve.py) and scikit_bring_your_own of
aws/amazon-sagemaker-examples.
"""

from container.vendors.rules import bytes_to_mib, integer, log_level, no_effect, table, to

RULES = table(
    to("num_workers", "SAGEMAKER_MODEL_SERVER_WORKERS MODEL_SERVER_WORKERS SAGEMAKER_GUNICORN_WORKERS", integer),
    to(
        "request_timeout_s",
        "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS SAGEMAKER_MODEL_SERVER_TIMEOUT MODEL_SERVER_TIMEOUT "
        "SAGEMAKER_GUNICORN_TIMEOUT_SECONDS",
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
    no_effect("answers have no limit of length", "MMS_MAX_RESPONSE_SIZE TS_MAX_RESPONSE_SIZE"),
    no_effect(
        "one engine serves all workers",
        "MMS_DEFAULT_WORKERS_PER_MODEL TS_DEFAULT_WORKERS_PER_MODEL MMS_JOB_QUEUE_SIZE TS_JOB_QUEUE_SIZE "
        "MMS_DEFAULT_RESPONSE_TIMEOUT TS_DEFAULT_RESPONSE_TIMEOUT MMS_NETTY_CLIENT_THREADS MMS_NUMBER_OF_NETTY_THREADS",
        "1",
    ),
)
