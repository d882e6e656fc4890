"""`transform`: a batch job over lines of JSON in S3.

Knows the parameters of a transform job. Must not know boto3.
"""

import dataclasses
import time

from sagemaker.calls import MAX_NAME_LENGTH, Call, ToolError, checked_name, checked_s3_uri, tags
from sagemaker.deploy import COMMAND, POLL_INTERVAL_S, Tool
from sagemaker.instances import DEFAULT_INSTANCE_TYPE, has_gpu

# The newest driver (535, CUDA 12.2) that batch transform offers; it has none for CUDA 13.
GPU_AMI = "al2-ami-sagemaker-batch-gpu-535"
CONTENT_TYPE = "application/jsonlines"
# SageMaker's limits are 100 MB for all requests at once, and 6 MB by default for one. Large requests keep the engine's
# batch full to the end of each; eight at once keep it full across their ends.
MAX_CONCURRENT_TRANSFORMS = 8
MAX_PAYLOAD_MB = 6
MAX_TOTAL_PAYLOAD_MB = 100
# A request is many records; it may take as long as the platform allows.
INVOCATION_TIMEOUT_S = 3600
MAX_RETRIES = 1
_JOB_TIMEOUT_S = 5 * 24 * 60 * 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
    """A job. input: one object or a prefix of JSON lines; output: a prefix, where KEY becomes KEY.out."""

    name: str
    model_name: str
    input: str
    output: str
    instance_type: str = DEFAULT_INSTANCE_TYPE
    instances: int = 1
    ami_version: str | None = None
    max_concurrent: int = MAX_CONCURRENT_TRANSFORMS
    max_payload_mb: int = MAX_PAYLOAD_MB
    join_input: bool = False


def job_name(model_name: str) -> str:
    """A name for a job that starts now: job names are never free again."""
    suffix = time.strftime("-%Y%m%d-%H%M%S", time.gmtime())
    return model_name[: MAX_NAME_LENGTH - len(suffix)].rstrip("-") + suffix


def create_transform_job(job: Transform) -> Call:
    """The request. Raises ToolError for what SageMaker would refuse."""
    checked_name(job.name, "job name")
    checked_name(job.model_name, "model name")
    if job.max_concurrent < 1 or job.max_payload_mb < 1 or job.instances < 1:
        raise ToolError("instances, requests at once and megabytes are at least 1: raise the one that is not")
    if job.max_concurrent * job.max_payload_mb > MAX_TOTAL_PAYLOAD_MB:
        raise ToolError(
            f"{job.max_concurrent} requests of {job.max_payload_mb} MB are over SageMaker's {MAX_TOTAL_PAYLOAD_MB} MB: "
            "lower --max-concurrent or --max-payload-mb"
        )
    resources = {"InstanceType": job.instance_type, "InstanceCount": job.instances}
    ami_version = job.ami_version if job.ami_version is not None else (GPU_AMI if has_gpu(job.instance_type) else "")
    if ami_version:
        resources["TransformAmiVersion"] = ami_version
    parameters = {
        "TransformJobName": job.name,
        "ModelName": job.model_name,
        "BatchStrategy": "MultiRecord",
        "MaxConcurrentTransforms": job.max_concurrent,
        "MaxPayloadInMB": job.max_payload_mb,
        "ModelClientConfig": {
            "InvocationsTimeoutInSeconds": INVOCATION_TIMEOUT_S,
            "InvocationsMaxRetries": MAX_RETRIES,
        },
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": checked_s3_uri(job.input, "input")}},
            "ContentType": CONTENT_TYPE,
            "CompressionType": "None",
            "SplitType": "Line",
        },
        "TransformOutput": {
            "S3OutputPath": checked_s3_uri(job.output, "output"),
            "Accept": CONTENT_TYPE,
            "AssembleWith": "Line",
        },
        "TransformResources": resources,
        "Tags": tags({}),
    }
    if job.join_input:
        parameters["DataProcessing"] = {"JoinSource": "Input"}
    return Call("sagemaker", "CreateTransformJob", parameters)


def transform(tool: Tool, job: Transform, *, wait: bool) -> None:
    """Start the job, and wait for its end if asked to. Raises ToolError."""
    call = create_transform_job(job)
    model = tool.aws.run(Call("sagemaker", "DescribeModel", {"ModelName": job.model_name}))
    source = model.get("PrimaryContainer", {}).get("ModelDataSource", {}).get("S3DataSource", {})
    if source.get("CompressionType") == "None":
        raise ToolError(
            f"model {job.model_name} is an uncompressed prefix, which batch transform cannot read: "
            f"`{COMMAND} deploy --model-only` with one .tar.gz or a hub's id"
        )
    tool.aws.run(call)
    tool.say(f"started transform job {job.name}")
    if not wait:
        tool.say(f"next: {COMMAND} status {job.name} --transform")
        return
    give_up = time.monotonic() + _JOB_TIMEOUT_S
    while (state := _state(tool, job.name)) in ("InProgress", "Stopping"):
        if time.monotonic() >= give_up:
            raise ToolError(f"job {job.name} is still {state}: see `{COMMAND} status {job.name} --transform`")
        tool.sleep(POLL_INTERVAL_S)
    status(tool, job.name)
    if state != "Completed":
        raise ToolError(f"job {job.name} is {state}: see `{COMMAND} logs {job.name} --transform`")


def describe(name: str) -> Call:
    """The request for a job's state."""
    return Call("sagemaker", "DescribeTransformJob", {"TransformJobName": name})


def _state(tool: Tool, name: str) -> str:
    return str(tool.aws.run(describe(name))["TransformJobStatus"])


def status(tool: Tool, name: str) -> None:
    """Print how a job is. Raises ToolError."""
    answer = tool.aws.run(describe(name))
    state = answer["TransformJobStatus"]
    tool.say(f"transform job {name}: {state}")
    if reason := answer.get("FailureReason"):
        tool.say(f"  reason: {reason}")
    output = answer.get("TransformOutput", {}).get("S3OutputPath", "")
    if state == "Completed":
        tool.say(f"next: aws s3 ls --recursive {output}")
    else:
        tool.say(f"next: {COMMAND} logs {name} --transform" + (" --follow" if state == "InProgress" else ""))
