# Makes a base image from /build/base.tar.zst. Arguments: its full name.
b() { buildah --root=/storage --runroot=/run/buildah --storage-driver=overlay "$@"; }
if b inspect --type image "$1" >/dev/null 2>&1; then
    exit 0
fi
container=$(b from scratch)
b add --quiet "$container" /build/base.tar.zst / >/dev/null
b config --cmd /bin/bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
# Dying before this line leaves a container, which the next start removes.
b commit --quiet --rm "$container" "$1" >/dev/null
