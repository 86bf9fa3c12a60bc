# The retriever: CPU only, no torch. Build from the repository's root:
#
#   docker build -f deploy/retriever.Dockerfile -t laser-retriever .
#
# Packages come from deploy/wheelhouse once `make wheelhouse` has filled it (its pip.conf then tells pip to use nothing
# else), otherwise from the package index.

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
    python deploy/requirements.py retriever >/tmp/requirements.txt \
    && /opt/laser/bin/pip install -c constraints.txt -r /tmp/requirements.txt

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
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin laser \
    && install -d -o 10001 -g 10001 /pools
COPY --from=dependencies /opt/laser /opt/laser
# Numba takes a cached kernel only while the source's modification time is the one it was compiled from, and image
# layers keep whole seconds: so the sources get one.
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    /opt/laser/bin/pip install --no-index --no-deps --no-compile --no-cache-dir --root-user-action=ignore /dist/*.whl \
    && find /opt/laser/lib/python3.11/site-packages/laser_* -name '*.py' -exec touch -d '2020-01-01' {} + \
    && /opt/laser/bin/python -m compileall -q /opt/laser/lib/python3.11/site-packages/laser_*
# Half a minute of compiling at every start otherwise. Kernels are compiled for the processor they run on, so elsewhere
# they may be compiled once more, into the writable copy that the entry point makes.
RUN NUMBA_CACHE_DIR=/opt/laser/numba-cache /opt/laser/bin/python -c \
    "from laser_retriever.tree_drafter import DraftParams; from laser_retriever.warmup import warm_up; warm_up(DraftParams())"
COPY deploy/entrypoint.sh /usr/local/bin/entrypoint
ENV PATH=/opt/laser/bin:$PATH PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/tmp/numba-cache
USER 10001:10001
VOLUME /pools
EXPOSE 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s --retries=3 CMD ["laser", "health", "127.0.0.1:50051"]
ENTRYPOINT ["/bin/sh", "/usr/local/bin/entrypoint", "laser-retriever"]
CMD ["serve", "--pools", "/pools", "--listen", "0.0.0.0:50051"]
