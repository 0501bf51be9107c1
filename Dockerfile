# The server on onnxruntime, without torch, pip or a compiler; for the CPU, or with '--target gpu' for CUDA.
#   docker build -t panther-sketch:cpu .
#   docker run -p 127.0.0.1:8000:8000 -p 127.0.0.1:8001:8001 -v "$PWD/models:/models:ro" --read-only --tmpfs /tmp panther-sketch:cpu
# The target 'train' contains the library with torch: docs/training.md.

FROM python:3.11-slim-bookworm AS tools
# Package index, for sites with a private mirror; pip's default if empty.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY deploy/image /opt/image

FROM tools AS packages-cpu
COPY requirements/serve-cpu.lock /opt/
RUN sh /opt/image/install-packages /opt/serve-cpu.lock
COPY app /opt/venv/lib/python3.11/site-packages/app
# Compile bytecode here, because the served file system is read-only; it is validated by content, not by time.
RUN /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib/python3.11/site-packages

# CUDA and cuDNN come as NVIDIA's wheels; the driver comes from the host.
FROM tools AS packages-gpu
COPY requirements/serve-gpu.lock /opt/
RUN sh /opt/image/install-packages /opt/serve-gpu.lock
COPY app /opt/venv/lib/python3.11/site-packages/app
RUN /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib/python3.11/site-packages

FROM tools AS root
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin panther \
    && mkdir /models \
    && sh /opt/image/remove-installers \
    && rm -rf /opt/image

# Copied as one layer, so removed files are in no layer.
FROM scratch AS base
# hadolint ignore=DL3067
COPY --from=root / /
COPY deploy/healthcheck.py /opt/
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    PANTHER_MODEL_DIR=/models \
    PANTHER_HOST=0.0.0.0 \
    PANTHER_PORT=8000 \
    PANTHER_GRPC_PORT=8001
USER 10001:10001
WORKDIR /
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/opt/venv/bin/python", "-I", "-S", "/opt/healthcheck.py"]
CMD ["python", "-m", "app"]
ARG VERSION=0.1.0
ARG REVISION
LABEL org.opencontainers.image.title="panther-sketch" \
    org.opencontainers.image.description="Serves sketched ONNX models over HTTP and gRPC." \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"

FROM base AS gpu
COPY --from=packages-gpu /opt/venv /opt/venv
# Driver capabilities for the NVIDIA container runtime; the server is not ready without CUDA.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PANTHER_DEVICE=cuda
RUN --mount=type=bind,source=deploy/image,target=/mnt ["/opt/venv/bin/python", "/mnt/check.py", "gpu"]

# torch, onnx and the 'panther' command; 'docker compose -f docker-compose.yml -f docker-compose.train.yml run train'.
FROM python:3.11-slim-bookworm AS train
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY panther /src/panther
COPY panther_client /src/panther_client
COPY app /src/app
# Wheels in requirements/wheels, such as torch's CPU-only build, take precedence over the index.
RUN --mount=type=bind,source=requirements/wheels,target=/mnt \
    useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin panther \
    && mkdir /models && chown 10001:10001 /models \
    && python3 -m venv /opt/venv \
    && PIP_CONSTRAINT=/src/constraints.txt PIP_BUILD_CONSTRAINT=/src/constraints.txt /opt/venv/bin/pip install \
        --disable-pip-version-check --no-cache-dir --find-links /mnt '/src[train,cpu]' \
    && rm -rf /src
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/tmp
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["panther"]
CMD ["train", "--to", "/models"]
LABEL org.opencontainers.image.title="panther-sketch training" \
    org.opencontainers.image.licenses="Apache-2.0"

FROM base AS cpu
COPY --from=packages-cpu /opt/venv /opt/venv
# Its onnxruntime has no CUDA, so "auto" would warn at each start.
ENV PANTHER_DEVICE=cpu
RUN --mount=type=bind,source=deploy/image,target=/mnt ["/opt/venv/bin/python", "/mnt/check.py", "cpu"]
