#!/usr/bin/env bash
# A browser for the tests that open pages: Debian's chromium, where apt-get is at hand and permitted. Elsewhere those tests are skipped.
set -euo pipefail

say() { printf 'browser: %s\n' "$*" >&2; }

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    say "none here; installing one takes apt-get and root, so tests that open pages are skipped"
    exit 0
fi
say "chromium"
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install --quiet=2 --yes --no-install-recommends chromium fonts-dejavu-core >&2; }
install || { apt-get update --quiet=2 >&2 && install; } || say "apt-get gave none, so tests that open pages are skipped"
