# The verifier with SmolLM2-135M-Instruct in /models, on CPU, or on a GPU with a CUDA build of torch. Build from the
# repository's root:
#
#   docker build -f deploy/verifier.Dockerfile -t laser-verifier .
#
# Packages come from deploy/wheelhouse once `make wheelhouse` has filled it (its pip.conf then tells pip to use nothing
# else), otherwise from the package index. Which build of torch that is, is up to the wheelhouse or the index.

FROM python:3.11-slim-bookworm AS dependencies
ENV PIP_CONFIG_FILE=/wheelhouse/pip.conf PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# Passed on to pip, for those who have an index of their own.
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
RUN python -m venv /opt/laser
WORKDIR /src
COPY pyproject.toml constraints.txt ./
COPY deploy/requirements.py deploy/
# In a layer of its own: a change of source does not install these again.
RUN --mount=type=bind,source=deploy/wheelhouse,target=/wheelhouse \
    python deploy/requirements.py verifier >/tmp/requirements.txt \
    && /opt/laser/bin/pip install -c constraints.txt -r /tmp/requirements.txt

# The example model, out of its wheel. What the conversion alone needs stays in this stage.
FROM dependencies AS model
RUN --mount=type=bind,source=deploy/wheelhouse,target=/wheelhouse \
    /opt/laser/bin/pip install -c constraints.txt gguf accelerate
# No more than the command needs: other changes of recsys do not convert again.
COPY recsys/laser_recsys/__init__.py recsys/laser_recsys/cache.py recsys/laser_recsys/errors.py \
    recsys/laser_recsys/example_model.py recsys/laser_recsys/files.py recsys/laser_recsys/
RUN --mount=type=bind,source=deploy/wheelhouse,target=/wheelhouse \
    PYTHONPATH=recsys /opt/laser/bin/python -c "from pathlib import Path; from laser_recsys import example_model; \
    example_model.prepare_example_model(Path('/models/SmolLM2-135M-Instruct'), Path('/tmp/cache'))"

FROM dependencies AS wheel
COPY README.md LICENSE ./
COPY protos protos
COPY client client
COPY retriever_server retriever_server
COPY verifier_server verifier_server
COPY recsys recsys
RUN --mount=type=bind,source=deploy/wheelhouse,target=/wheelhouse \
    PIP_CONSTRAINT=/src/constraints.txt /opt/laser/bin/pip wheel --no-deps --wheel-dir /dist .

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 laser \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin laser
# Largest and rarest to change first.
COPY --from=dependencies /opt/laser /opt/laser
COPY --from=model /models /models
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    /opt/laser/bin/pip install --no-index --no-deps --no-compile --no-cache-dir --root-user-action=ignore /dist/*.whl \
    && find /opt/laser/lib/python3.11/site-packages/laser_* -name '*.py' -exec touch -d '2020-01-01' {} + \
    && /opt/laser/bin/python -m compileall -q /opt/laser/lib/python3.11/site-packages/laser_*
# The kernels of the processor's forward, compiled as in the retriever's image, whose comments say why.
RUN NUMBA_CACHE_DIR=/opt/laser/numba-cache /opt/laser/bin/python -c \
    "import torch; from laser_verifier.cpu.team import Team; [Team(t) for t in (torch.bfloat16, torch.float32)]"
COPY deploy/entrypoint.sh /usr/local/bin/entrypoint
# HOME and the cache of what a model's code may want to keep: the file system may be read-only.
ENV PATH=/opt/laser/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp HF_HOME=/tmp/huggingface \
    NUMBA_CACHE_DIR=/tmp/numba-cache
USER 10001:10001
EXPOSE 50052
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s --retries=3 CMD ["laser", "health", "127.0.0.1:50052"]
ENTRYPOINT ["/bin/sh", "/usr/local/bin/entrypoint", "laser-verifier"]
CMD ["serve", "--model", "/models/SmolLM2-135M-Instruct", "--listen", "0.0.0.0:50052"]
