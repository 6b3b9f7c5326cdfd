# syntax=docker/dockerfile:1
# One image for the head, the workers and the submitter of a Ray cluster, in two targets:
#
#   docker build --target cpu  -t cxr-ray:cpu  --build-arg TORCH_INDEX_URL=<index of the CPU wheels> .
#   docker build --target cuda -t cxr-ray:cuda .
#
# TORCH_INDEX_URL: the CPU wheel index that PyTorch's install page names. Left empty, torch comes from
# pip's usual index: that works on CPUs too, but carries several GB of CUDA libraries.
# The CUDA target needs only the NVIDIA driver and container toolkit on the host; torch brings the rest.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# -- dependencies, in layers of their own: a change of the code does not install them again ------------
FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
# A stub package is enough for pip to read the extras; the code replaces it below.
RUN mkdir cxr_ray && touch cxr_ray/__init__.py
# The image's own layers have no compiler; what this one builds of the kernels is put beside the code below.
COPY cxr_ray/nets/fused/*.cpp cxr_ray/nets/fused/*.h cxr_ray/nets/fused/
RUN apt-get update && apt-get install -y --no-install-recommends g++ \
    && pip install setuptools && python -c "from setuptools import setup; setup()" build_ext --build-lib /opt/kernels

FROM build AS build-cpu
ARG TORCH_INDEX_URL=""
RUN pip install -c constraints.txt ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} torch
RUN pip install -c constraints.txt ".[jobs,s3,keras]"

FROM build AS build-cuda
RUN pip install -c constraints.txt ".[jobs,s3,keras]"

# -- what both targets share ---------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS base
# wget: KubeRay's health probes call it. profile.d: KubeRay starts `bash -lc`, and a login shell resets PATH.
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && echo 'export PATH=/opt/venv/bin:$PATH' > /etc/profile.d/venv.sh \
    && useradd --create-home --uid 1000 cxr
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0
WORKDIR /opt/cxr_ray
CMD ["cxr-ray", "info"]

FROM base AS cpu
COPY --from=build-cpu /opt/venv /opt/venv
COPY . .
RUN pip install --no-cache-dir --no-deps -e .
COPY --from=build-cpu /opt/kernels /opt/cxr_ray
USER cxr

FROM base AS cuda
# Triton compiles the launcher of each kernel where it runs; the headers of Python come with the image.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/venv /opt/venv
COPY . .
RUN pip install --no-cache-dir --no-deps -e .
COPY --from=build-cuda /opt/kernels /opt/cxr_ray
USER cxr
