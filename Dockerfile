# The image of every variant: upstream's image plus our files. Only COPY --link is used, so that every platform builds
# without emulation and the base image (30 GB for AMD) is never unpacked. BASE: the upstream image, by its digest in
# patches/upstream.toml. SOURCE: the small CPU image of the same version and platform. scripts/build.py sets both.
ARG BASE
ARG SOURCE=${BASE}
FROM ${SOURCE} AS source
FROM ${BASE}

# Upstream's main.py, which ours replaces, stays importable as upstream_main. It is the same file in all variants,
# because the last stage of upstream's Dockerfile, with `COPY immich_ml immich_ml`, is common to them.
COPY --link --from=source /usr/src/immich_ml/main.py /usr/src/immich_ml/upstream_main.py
COPY --link patches/immich_ml /usr/src/immich_ml
COPY --link overlay /usr/src
COPY --link VERSION /usr/src/mt_photos_ml/VERSION

ARG BASE
ARG BASE_DIGEST
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="mt-photos-ml" \
      org.opencontainers.image.description="The recognition service for MT Photos: text, search by words and faces" \
      org.opencontainers.image.source="https://github.com/dev-fox-101/mt-photos-ml" \
      org.opencontainers.image.licenses="AGPL-3.0-only" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"

ENV OCR_MODEL_NAME=PP-OCRv5_mobile
EXPOSE 3003

HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["bash", "healthcheck.bash"]

# gunicorn itself instead of upstream's parent process, which does not pass signals on to it
CMD ["python", "-m", "gunicorn", "-c", "python:mt_photos_ml.server.gunicorn_conf"]
