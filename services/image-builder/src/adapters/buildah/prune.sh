# Removes leftovers, and all layers when they take more than the given KiB.
b() { buildah --root=/storage --runroot=/run/buildah --storage-driver=overlay "$@"; }
b rm --all >/dev/null 2>&1 || true
used=$(du --summarize --one-file-system --block-size=1024 /storage | cut -f1)
if [ "$used" -gt "$1" ]; then
    b rmi --all --force
fi
