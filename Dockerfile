# A container that predicts and does nothing else. `make image` builds it; docs/predicting.md says how to run it.
#
# At run time it needs no network, no rights and no root that can be written. Only /tmp and the folder of `--output` are written to.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
WORKDIR /build
COPY requirements.lock requirements-dev.lock ./
# The packages for MetaImage, NRRD and DICOM are locked with those of the tests. pip checks the SHA-256 of every file.
RUN awk '/^[^ #]/ { keep = /^(highdicom|pydicom|pyjpegls|pylibjpeg|pylibjpeg-openjpeg|simpleitk)==/ } keep' requirements-dev.lock > formats.lock \
    && python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock -r formats.lock
WORKDIR /app
COPY LICENSE dataset.py predict.py utils.py ./
COPY modules modules
# Any user may read the program, whatever umask it was copied under. Nobody can compile it later.
RUN mkdir runs && chmod -R a+rX,go-w . && /opt/venv/bin/python -m compileall -q .

FROM ${BASE} AS program
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
ENV HOME=/tmp TMPDIR=/tmp MPLCONFIGDIR=/tmp/matplotlib XDG_CACHE_HOME=/tmp/cache PYTHONDONTWRITEBYTECODE=1
# `predict.py` takes the newest run in runs/ of its working folder where nobody names a model.
WORKDIR /app
USER 65534:65534
ENTRYPOINT ["/opt/venv/bin/python", "/app/predict.py"]
CMD ["--help"]

# With `--target with-model --build-arg MODEL=runs/NAME` the model comes along, and nothing else of the run but its scores.
FROM program AS with-model
ARG MODEL
USER 0:0
COPY ${MODEL}/summary.json runs/model/
COPY ${MODEL}/bundle runs/model/bundle
RUN chmod -R a+rX,go-w runs
USER 65534:65534

# Without a target the model is mounted.
FROM program
