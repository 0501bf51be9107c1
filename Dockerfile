# The server on onnxruntime, without torch, pip or a compiler.
#   docker build -t panther-sketch:cpu .
#   docker run -p 127.0.0.1:8000:8000 -v "$PWD/models:/models:ro" --read-only --tmpfs /tmp panther-sketch:cpu

FROM python:3.11-slim-bookworm AS packages
# Where packages come from, for sites with a mirror of their own; pip's default when empty.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY requirements/serve-cpu.lock /tmp/
RUN python3 -m venv --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python --disable-pip-version-check --no-cache-dir \
        install --require-hashes --only-binary :all: --no-deps --no-compile -r /tmp/serve-cpu.lock
# Left out: tests, C sources, onnxruntime's tools for making models (they need torch or onnx) and its copy for C programs.
# Bytecode is made here, since the served file system is read-only; it goes by content, not by a file's time.
COPY app /opt/venv/lib/python3.11/site-packages/app
RUN cd /opt/venv/lib/python3.11/site-packages \
    && find . -type d -name tests -prune -exec rm -rf {} + \
    && find . -type f -regex '.*\.\(c\|cpp\|h\|hpp\|pxd\|pyx\)' -delete \
    && rm -rf onnxruntime/transformers onnxruntime/quantization onnxruntime/tools onnxruntime/capi/libonnxruntime.so* \
    && /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash .

# The base image less what installs software: pip and its kin, Debian's package manager, and the Perl that these run on.
# Debian's record of what is left stays, for scanners to read.
FROM python:3.11-slim-bookworm AS root
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin panther \
    && mkdir /models \
    && dpkg --purge --force-depends --force-remove-essential --force-remove-protected $(dpkg-query -W -f '${Package}\n' \
        adduser apt debconf debian-archive-keyring gpgv 'libapt-pkg*' perl perl-base 'perl-modules-*' 'libperl5*' \
        python3-distutils python3-lib2to3 'python3-pip*' python3-pkg-resources 'python3-setuptools*' \
        'python3*-venv' python3-wheel 2>/dev/null) >/tmp/purge.log 2>&1 || { cat /tmp/purge.log; exit 1; }
RUN rm -rf /usr/local/lib/python3.11/site-packages/* /usr/local/lib/python3.11/ensurepip /usr/local/bin/pip* \
    /usr/local/bin/wheel /etc/apt /etc/pip.conf /root/.cache /var/cache/* /var/lib/apt /var/log/* /tmp/* \
    /usr/lib/*/gconv

# Copied as one layer, so that what was removed above is in none.
FROM scratch AS cpu
COPY --from=root / /
COPY --from=packages /opt/venv /opt/venv
COPY deploy/healthcheck.py /opt/
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    PANTHER_MODEL_DIR=/models \
    PANTHER_HOST=0.0.0.0 \
    PANTHER_PORT=8000
USER 10001:10001
WORKDIR /
# What must not be in the image, and what must work in it, as the user that serves.
RUN ["/opt/venv/bin/python", "-c", "\
import importlib.util, shutil; \
found = [name for name in ('torch', 'onnx', 'panther', 'pip', 'setuptools', 'ensurepip') if importlib.util.find_spec(name)]; \
found += [name for name in ('pip', 'pip3', 'cc', 'gcc', 'c++', 'ld', 'make') if shutil.which(name)]; \
assert not found, f'in the image, and must not be: {found}'; \
import app.main"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/opt/venv/bin/python", "-I", "-S", "/opt/healthcheck.py"]
CMD ["python", "-m", "app"]
ARG VERSION=0.1.0
ARG REVISION
LABEL org.opencontainers.image.title="panther-sketch" \
    org.opencontainers.image.description="Serves sketched ONNX models over HTTP, on CPU." \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
