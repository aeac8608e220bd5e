# Everything that building Nibble and running all of its tests takes; the sources are mounted, not copied:
#
#   docker build -f docker/development.Dockerfile -t nibble-development .
#   docker run --rm -v "$PWD:/src" nibble-development tests/run

FROM debian:12
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY launch/dependencies /tmp/dependencies
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates ccache gdb && /tmp/dependencies --tests \
 && rm -rf /var/lib/apt/lists/* /tmp/dependencies && useradd --uid 10001 --create-home nibble && git config --system --add safe.directory /src
USER 10001
WORKDIR /src
CMD ["bash"]
