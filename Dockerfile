# Galley's image: docker build -t galley . && docker run --gpus all -p 8080:8080 -v MODEL:/opt/ml/model:ro galley serve
#
# Build arguments; docs/image.md says more.
#   BASE         a Debian with Python 3.11 or newer
#   PACKAGES     Debian packages: Triton and the CPU's kernels are compiled where they run, so a C compiler stays
#   TORCH        what pip installs as torch; PyPI's wheels are for CUDA 13 (drivers from 580 on)
#   TORCH_INDEX  where from instead of PyPI: https://download.pytorch.org/whl/cpu is the CPU variant, .../whl/cu126 is for
#                hosts whose driver is older

ARG BASE=python:3.12-slim-bookworm
FROM ${BASE} AS build
ARG TORCH=torch
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE serve ./
RUN python3 -m venv /opt/galley && \
    /opt/galley/bin/pip install ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} --constraint constraints.txt ${TORCH}
# The dependencies in a layer of their own: a change of ours does not fetch them again.
RUN mkdir -p container engine kernels && touch container/__init__.py engine/__init__.py kernels/__init__.py && \
    /opt/galley/bin/pip install --constraint constraints.txt . && rm -rf build container engine kernels
COPY container container
COPY engine engine
COPY kernels kernels
# Torch's headers are for building extensions of it, which nothing here does.
RUN /opt/galley/bin/pip install --no-deps --force-reinstall . && \
    rm -rf /opt/galley/lib/python3*/site-packages/torch/include

FROM ${BASE}
ARG PACKAGES="gcc libc6-dev"
RUN apt-get update && apt-get install -y --no-install-recommends ${PACKAGES} && rm -rf /var/lib/apt/lists/* /var/cache/*
COPY --from=build /opt/galley /opt/galley
# A host's NVIDIA runtime gives GPUs only to a container that asks for them here; a CUDA base image would have asked.
# The same path at build and at run: Triton's cache holds absolute paths.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PATH=/opt/galley/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    TRITON_CACHE_DIR=/opt/galley/triton
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true \
      org.opencontainers.image.title=galley \
      org.opencontainers.image.licenses=Apache-2.0
EXPOSE 8080
# While it starts it is not unhealthy: a large model's weights take minutes to come.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30m --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as r; port = os.environ.get('SAGEMAKER_BIND_TO_PORT') or os.environ.get('SM_GALLEY_PORT') or '8080'; r.urlopen(f'http://127.0.0.1:{port}/ping', timeout=2)"]
# No entry point: SageMaker runs `serve`, which is on the path, and so does an image without a command; signals reach it as PID 1.
CMD ["serve"]
