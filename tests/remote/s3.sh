#!/usr/bin/env bash
# Converts a checkpoint from a real S3 server on this machine, and compares with the local way.
# Needs s3s-fs (cargo install s3s-fs --version 0.14.1 --features binary) and a requant built with
# --features remote. Usage: s3.sh REQUANT CHECKPOINT TYPE
set -euo pipefail
requant=$(realpath "$1") checkpoint=$(realpath "$2") type=$3
work=$(mktemp -d -p "${TMPDIR:-/tmp}")
trap 'kill "${server:-}" 2>/dev/null; rm -rf "$work"' EXIT
mkdir "$work/root" "$work/home"
mkdir "$work/root/models"
cp -as "$checkpoint" "$work/root/models/" 2>/dev/null || cp -r "$checkpoint" "$work/root/models/"
name=$(basename "$checkpoint")
s3s-fs --port 8314 --access-key reader --secret-key not-to-be-shown "$work/root" >"$work/server.log" 2>&1 &
server=$!
export HOME=$work/home AWS_ENDPOINT_URL=http://localhost:8314 AWS_REGION=us-east-1
mkdir "$HOME/.aws"
printf '[default]\naws_access_key_id = reader\naws_secret_access_key = not-to-be-shown\n' >"$HOME/.aws/credentials"
for _ in $(seq 50); do (: </dev/tcp/localhost/8314) 2>/dev/null && break; sleep 0.1; done
time "$requant" convert "$checkpoint" "$work/local.gguf" --type "$type" -q
/usr/bin/time -f '%e s, %M kB' "$requant" convert "s3://models/$name" "$work/remote.gguf" --type "$type" -q
cmp "$work/local.gguf" "$work/remote.gguf"
if AWS_SECRET_ACCESS_KEY=wrong-but-secret "$requant" convert "s3://models/$name" "$work/x.gguf" --type "$type" 2>"$work/err"; then
    echo "a wrong key was accepted" >&2; exit 1
fi
cat "$work/err"
! grep -q "secret\|not-to-be-shown" "$work/err"
echo "equal: s3://models/$name and $checkpoint"
