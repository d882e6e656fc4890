"""Build the image without a Docker daemon, start it as SageMaker would, and call it with boto3.

    make image-test                        # the CPU variant; needs root, buildah and debootstrap (Debian packages)
    python tests/image/build.py --variant cuda --base IMAGE

The base is made by debootstrap where none is given. buildah builds with vfs storage and chroot isolation, which works
in a container. pip inside the build is configured as it is here: local folders that it takes packages from are mounted.
Ends with one JSON line: the image's size, the seconds until /ping answered 200, and what was checked.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import psutil
from botocore.config import Config
from botocore.exceptions import ClientError

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models/galley-tiny"
BUILD_LIMIT_S = 1800
START_LIMIT_S = 180
CHECK_LIMIT_S = 120
# The last GiB of a CUDA image is torch's libraries; what a step adds by mistake shows here.
MOST_GIB = {"cpu": 2.0, "cuda": 12.0}
SERVE = "/opt/galley/bin/serve"
_WAY_TO_THE_INDEX = ("cert", "client-cert", "index-url", "proxy", "retries", "timeout", "trusted-host")
PYTHON_PACKAGES = "python3,python3-venv,ca-certificates"


def run(command: Sequence[str], limit_s: float = BUILD_LIMIT_S, **more: Any) -> str:
    """Its output. Raises CalledProcessError or TimeoutExpired."""
    print("+", " ".join(command), file=sys.stderr, flush=True)
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=limit_s, cwd=ROOT, **more
    ).stdout.strip()


class Buildah:
    """buildah with its storage in one folder."""

    def __init__(self, folder: Path) -> None:
        roots = ("--root", str(folder / "storage"), "--runroot", str(folder / "run"))
        self.command = ("buildah", "--storage-driver", "vfs", *roots)
        self._environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(folder)}

    def __call__(self, *arguments: str, limit_s: float = BUILD_LIMIT_S) -> str:
        """Its output."""
        return run((*self.command, *arguments), limit_s, env=self._environment)

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """The process; what runs in the container is below it."""
        return subprocess.Popen((*self.command, *arguments), env=self._environment)


def make_base(buildah: Buildah, folder: Path) -> str:
    """An image of a small Debian with Python, as `python:3.12-slim` is one; made once."""
    name = "localhost/galley-base"
    if name in buildah("images", "--format", "{{.Name}}"):
        return name
    root = folder / "base"
    if not (root / "usr/bin/python3").exists():
        shutil.rmtree(root, ignore_errors=True)
        run(["debootstrap", "--variant=minbase", f"--include={PYTHON_PACKAGES}", "bookworm", str(root)])
        for cache in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(root / cache, ignore_errors=True)
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, str(root), "/")
    buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", container)
    buildah("commit", "--quiet", "--rm", container, name)
    return name


def check_machine(buildah: Buildah, folder: Path) -> None:
    """Whether a container can be made and run here. Ends with one line and status 1 if not."""
    try:
        container = buildah("from", make_base(buildah, folder), limit_s=CHECK_LIMIT_S)
        try:
            buildah("run", "--isolation", "chroot", container, "--", "python3", "--version", limit_s=CHECK_LIMIT_S)
        finally:
            buildah("rm", container)
    except (OSError, subprocess.SubprocessError) as error:
        raise SystemExit(f"no image can be built on this machine: {error}") from None


def pip_mounts(folder: Path, variant: str) -> list[str]:
    """`--volume` arguments that give the build this machine's pip configuration and the local folders in it.

    Packages that lie here are for the CPU: of the other variants' configuration only the way to the index counts.
    """
    told = run([sys.executable, "-m", "pip", "config", "list"])
    if variant != "cpu":
        told = "\n".join(
            line for line in told.splitlines() if line.partition("=")[0].split(".")[-1] in _WAY_TO_THE_INDEX
        )
    paths = {path for path in re.findall(r"(?:file://)?(/[^\s',]+)", told) if Path(path).exists()}
    paths |= {str(Path(path).parent) for path in paths if path.endswith("/simple")}
    arguments = []
    for path in sorted(paths):
        arguments += ["--volume", f"{path}:{path}:ro"]
    # The environment's come first in pip's list, and win.
    settings: dict[str, str] = {}
    for line in told.splitlines():
        place, _, value = line.partition("=")
        if place.startswith(("global.", "env:.", ":env:.")):
            settings.setdefault(place.split(".")[-1], value.strip("'"))
    if lines := [f"{name} = {value}" for name, value in settings.items()]:
        configuration = folder / "pip.conf"
        configuration.write_text("[global]\n" + "\n".join(lines) + "\n")
        arguments += ["--volume", f"{configuration}:/etc/pip.conf:ro"]
    return arguments


def build(buildah: Buildah, base: str, variant: str, folder: Path) -> str:
    """Build the image; its name."""
    name = f"localhost/galley:{variant}"
    arguments = [f"BASE={base}"]
    if variant == "cuda":
        arguments += ["PACKAGES=gcc libc6-dev python3-dev"]
    flags = [flag for argument in arguments for flag in ("--build-arg", argument)]
    mounts = pip_mounts(folder, variant)
    buildah("bud", "--isolation", "chroot", "--format", "docker", *flags, *mounts, "--tag", name, ".")
    return name


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(buildah: Buildah, container: str, port: int, command: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """`serve` in the container, the model mounted read-only where SageMaker puts it."""
    process = buildah.start(
        "run", "--isolation", "chroot", "--volume", f"{MODEL}:/opt/ml/model:ro",
        "--env", f"SAGEMAKER_BIND_TO_PORT={port}", container, "--", *command,
    )  # fmt: skip
    try:
        yield process
    finally:
        # Signals are meant for `serve`, which is PID 1 in a container; buildah stands between us and it.
        for inner in reversed(psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []):
            with contextlib.suppress(psutil.NoSuchProcess):
                inner.kill()
        if process.poll() is None:
            process.kill()
        process.wait(20)


def stop(process: "subprocess.Popen[bytes]") -> int:
    """End `serve` as SageMaker does; its exit code."""
    inner = psutil.Process(process.pid).children(recursive=True)
    [served] = [one for one in inner if "python" in one.cmdline()[0] and one.cmdline()[1:2] == [SERVE]]
    served.terminate()
    return process.wait(40)


def ping(port: int) -> int | None:
    """The status of /ping; None while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def wait_ready(process: "subprocess.Popen[bytes]", port: int) -> float:
    """Seconds until /ping answers 200."""
    started = time.monotonic()
    while time.monotonic() - started < START_LIMIT_S:
        if process.poll() is not None:
            raise SystemExit(f"serve ended with {process.returncode}")
        if ping(port) == 200:
            return time.monotonic() - started
        time.sleep(0.1)
    raise SystemExit("serve was not ready in time")


def call(port: int) -> list[str]:
    """Call it with boto3 through the local SageMaker endpoint; what was checked."""
    local_port = free_port()
    command = [
        sys.executable,
        "-m",
        "sagemaker",
        "local",
        "--url",
        f"http://127.0.0.1:{port}",
        "--port",
        str(local_port),
    ]
    local = subprocess.Popen(command, cwd=ROOT)
    try:
        client = boto3.client(
            "sagemaker-runtime", endpoint_url=f"http://127.0.0.1:{local_port}", region_name="us-east-1",
            aws_access_key_id="x", aws_secret_access_key="x", config=Config(retries={"max_attempts": 0}),
        )  # fmt: skip
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", local_port), timeout=1):
                break
            time.sleep(0.1)
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        said = invoke(client, body)["choices"][0]["message"]["content"]
        assert said, "an empty answer"
        events = client.invoke_endpoint_with_response_stream(
            EndpointName="galley", ContentType="application/json", Body=json.dumps({**body, "stream": True})
        )["Body"]
        streamed = b"".join(event["PayloadPart"]["Bytes"] for event in events)
        assert streamed.rstrip().endswith(b"[DONE]"), streamed[-200:]
        try:
            invoke(client, {"messages": "no list"})
        except ClientError as error:
            response: Any = error.response
            assert response["OriginalStatusCode"] == 400, response
        else:
            raise AssertionError("a bad body was answered")
        return ["plain", "streaming", "ModelError"]
    finally:
        local.terminate()
        local.wait(20)


def invoke(client: Any, body: dict[str, Any]) -> Any:
    """The answer's JSON."""
    response = client.invoke_endpoint(EndpointName="galley", ContentType="application/json", Body=json.dumps(body))
    return json.loads(response["Body"].read())


def check_settings(buildah: Buildah, name: str) -> None:
    """What the image says of itself."""
    config = json.loads(buildah("inspect", "--type", "image", name))["Docker"]["config"]
    assert config["Cmd"] == ["serve"] and not config.get("Entrypoint"), "exec form, so that signals reach serve"
    assert config["Labels"]["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert "NVIDIA_VISIBLE_DEVICES=all" in config["Env"]


def check_contents(root: Path) -> None:
    """Nothing that a build leaves behind."""
    leftovers = [root / "root/.cache", root / "src", root / "var/lib/apt/lists"]
    found = [str(path) for path in leftovers if path.is_dir() and any(path.iterdir())]
    assert not found, f"left behind: {found}"


def size_gib(root: Path) -> float:
    """Of all files, as `du` counts them."""
    return int(run(["du", "-sk", "-x", str(root)]).split()[0]) / 2**20


def main() -> None:
    """Build, start, call, stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--base", help="an image to build on (default: one that debootstrap makes)")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/galley-image"), help="for storage and the base")
    parser.add_argument("--keep", action="store_true", help="leave the image in the folder's storage")
    parser.add_argument("--check", action="store_true", help="only make the base and run a command in it")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    buildah = Buildah(args.folder)
    if args.check:
        check_machine(buildah, args.folder)
        return
    started = time.monotonic()
    name = build(buildah, args.base or make_base(buildah, args.folder), args.variant, args.folder)
    build_s = time.monotonic() - started
    check_settings(buildah, name)
    container = buildah("from", name)
    try:
        root = Path(buildah("mount", container))
        check_contents(root)
        gib = size_gib(root)
        result: dict[str, Any] = {"variant": args.variant, "build_s": round(build_s), "size_gib": round(gib, 2)}
        assert gib < MOST_GIB[args.variant], f"the image takes {gib:.1f} GiB"
        if args.variant == "cpu":
            result |= exercise(buildah, container)
        else:
            result["without_a_gpu"] = without_gpu(buildah, container)
    finally:
        buildah("rm", container)
        if not args.keep:
            buildah("rmi", name)
    print(json.dumps(result))


def exercise(buildah: Buildah, container: str) -> dict[str, Any]:
    """Start as `docker run IMAGE serve`, call, stop as SageMaker does."""
    port = free_port()
    with serving(buildah, container, port, ["serve", "--host", "127.0.0.1"]) as process:
        ready_s = wait_ready(process, port)
        checked = call(port)
        code = stop(process)
    assert code == 0, f"serve ended with {code}"
    assert ping(port) is None, "something still listens"
    return {"ready_s": round(ready_s, 1), "checked": checked, "exit_code": code}


def without_gpu(buildah: Buildah, container: str) -> str:
    """What `serve --device cuda` says where no GPU is."""
    process = subprocess.run(
        (*buildah.command, "run", "--isolation", "chroot", "--volume", f"{MODEL}:/opt/ml/model:ro", container, "--",
         "serve", "--host", "127.0.0.1", "--port", str(free_port()), "--device", "cuda"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip
    lines = [line for line in process.stdout.splitlines() if "no CUDA GPU is there" in line]
    assert process.returncode and lines, process.stdout[-2000:]
    return lines[0]


if __name__ == "__main__":
    main()
