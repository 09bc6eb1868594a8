# A worker with the CPU view of libtorch; with CUDA: --build-arg VIEW=cuda
#   docker build -f deploy/docker/worker.Dockerfile -t pleach-worker .
ARG VIEW=cpu

FROM rust:1.95-bookworm AS build
ARG VIEW
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3-pip && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The view stays where the program looks for it at run time: /opt/pleach is copied as a whole.
ENV XDG_CACHE_HOME=/opt
RUN if [ "$VIEW" = cuda ]; then \
      cargo xtask setup --cuda && rm -rf /opt/pleach/libtorch-2* \
      && export LIBTORCH="$(readlink -f .pleach/libtorch-cuda)" && features="--features cuda"; \
    else \
      cargo xtask setup && export LIBTORCH="$(readlink -f .pleach/libtorch)"; \
    fi \
    && cargo build --release --locked -p pleach-worker $features \
    && rm -rf /opt/pleach/*/torch/include /opt/pleach/*/nvidia/*/include /opt/pleach/protox-* /opt/pleach/downloads

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends libstdc++6 ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/pleach /opt/pleach
COPY --from=build /src/target/release/pleach-worker /usr/local/bin/pleach-worker
USER 65532
ENTRYPOINT ["pleach-worker"]
