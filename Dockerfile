# The proxy's image. Both stages start from the same BASE, so that the virtual environment made in one finds its
# interpreter in the other. BASE must have Python 3.11 or newer as `python3`, with venv.
ARG BASE=python:3.13-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY locks/build.txt locks/proxy.txt locks/
RUN python3 -m venv /opt/build \
 && python3 -m venv --without-pip /opt/venv \
 && /opt/build/bin/pip install --no-cache-dir --require-hashes --requirement locks/build.txt \
 && /opt/build/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --only-binary :all: \
      --require-hashes --requirement locks/proxy.txt
COPY pyproject.toml README.md LICENSE ./
COPY proxy proxy
# The wheel holds both packages; this image carries the proxy alone.
RUN mkdir -p operator/tinybird_proxy_operator && touch operator/tinybird_proxy_operator/__init__.py
# Bytecode is made here, once, and never compared with its source again: nobody can write to it where it runs.
RUN /opt/build/bin/pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/build/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --no-index --no-deps /wheels/*.whl \
 && /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib

FROM ${BASE} AS build-operator
WORKDIR /src
COPY locks/build.txt locks/operator.txt locks/
RUN python3 -m venv /opt/build \
 && python3 -m venv --without-pip /opt/venv \
 && /opt/build/bin/pip install --no-cache-dir --require-hashes --requirement locks/build.txt \
 && /opt/build/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --only-binary :all: \
      --require-hashes --requirement locks/operator.txt
COPY pyproject.toml README.md LICENSE ./
COPY proxy proxy
COPY operator operator
RUN /opt/build/bin/pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/build/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --no-index --no-deps /wheels/*.whl \
 && /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib

FROM ${BASE} AS operator
COPY --from=build-operator /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH}
RUN ["python", "-c", "import tinybird_proxy_operator.__main__"]
ENV PYTHONDONTWRITEBYTECODE=1
ARG VERSION=dev
LABEL org.opencontainers.image.title="tinybird-proxy-operator" \
      org.opencontainers.image.description="The Kubernetes operator for tinybird-proxy." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
USER 10001:10001
EXPOSE 6443 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["tinybird-proxy-operator"]

FROM ${BASE} AS proxy
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH}
# Proves that what was copied can start. It also leaves the standard library's bytecode, which slim images come without.
RUN ["python", "-c", "import tinybird_proxy.app"]
ENV PYTHONDONTWRITEBYTECODE=1
ARG VERSION=dev
LABEL org.opencontainers.image.title="tinybird-proxy" \
      org.opencontainers.image.description="A batching proxy for Tinybird's Events API that never loses a row silently." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
USER 10001:10001
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
ENTRYPOINT ["tinybird-proxy"]
CMD ["run"]
