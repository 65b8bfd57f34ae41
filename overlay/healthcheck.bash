# SPDX-License-Identifier: AGPL-3.0-only
# Docker's health check of the image. Asks /ping over bash's own socket: starting Python every few seconds costs more.
host=${IMMICH_HOST:-::}
host=${host#[}
host=${host%]}
case $host in ::|0.0.0.0) host=127.0.0.1 ;; esac
exec 3<>"/dev/tcp/$host/${IMMICH_PORT:-3003}" || exit 1
printf 'GET /ping HTTP/1.0\r\n\r\n' >&3
grep -q pong <&3
