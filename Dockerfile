# Shoal: one image, one command per role.
#
#   docker buildx build --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:... --sbom=true --provenance=true -t shoal:0.1.0 .
#
# The base has no default: a digest is a decision of who builds (`docker buildx imagetools inspect python:3.11-slim-bookworm`
# tells today's), and one written here would be out of date or made up. Needs Python 3.11 to 3.13 on Debian.
#
#   shoal up            all of it, a laptop or a single machine (compose.yaml)
#   ray start ...       a node of a Ray cluster: KubeRay writes that command (kuberay/)
#   shoal deploy ...    the deployer of a Ray cluster
#   shoal check|verify  audits by the clock
ARG PYTHON_IMAGE

FROM ${PYTHON_IMAGE} AS build
ARG UV_VERSION=0.13.8
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/app/.venv
RUN pip install --no-cache-dir --disable-pip-version-check "uv==${UV_VERSION}"
WORKDIR /app
# What changes rarely first: the dependencies are a layer that a change of ours leaves as it is.
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN uv sync --frozen --no-dev --no-install-project
COPY shoal ./shoal
RUN uv sync --frozen --no-dev --no-editable \
 && uv export --frozen --no-dev --no-emit-project --format cyclonedx1.5 --quiet --output-file /app/sbom.cdx.json
# Offline-ready or not built: the model, its tokenizer and OpenAI's tokens must be inside. The name of no host is found.
RUN --network=none SHOAL_DATA_DIR=/tmp/offline SHOAL_EMBEDDING_PROVIDER=local \
    /app/.venv/bin/shoal explain /app/README.md --output json > /dev/null \
 && SHOAL_DATA_DIR=/tmp/offline /app/.venv/bin/python -m shoal.embeddings.offline \
 && rm -rf /tmp/offline

FROM ${PYTHON_IMAGE}
# wget: KubeRay's readiness probe of workers that serve is a wget command. All else that Shoal runs is in its wheels.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends wget \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 shoal \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/shoal --create-home --shell /usr/sbin/nologin shoal
COPY --from=build /app/.venv /app/.venv
COPY --from=build /app/sbom.cdx.json /usr/share/shoal/sbom.cdx.json
# Where a login shell finds them too: KubeRay starts its commands with one where it is told to.
RUN ln -s /app/.venv/bin/shoal /app/.venv/bin/ray /app/.venv/bin/serve /usr/local/bin/
ENV PATH=/app/.venv/bin:$PATH \
    HOME=/var/lib/shoal \
    SHOAL_DATA_DIR=/var/lib/shoal \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
# By number, so that Kubernetes can see that it is not root. The root may be read-only: /tmp and this directory are written.
USER 10001:10001
WORKDIR /var/lib/shoal
EXPOSE 8000
CMD ["shoal", "--help"]
