# Makes /build/shared/disk.ext4 from an image. Arguments: its id, KiB of the disk.
b() { buildah --root=/storage --runroot=/run/buildah --storage-driver=overlay "$@"; }
out=/build/shared
container=$(b from --pull-never "$1")
b inspect --type image "$1" >$out/image.json
tree=$(b mount "$container")
# What builds mount there is not the image's. A link would lead elsewhere.
if [ ! -L "$tree/run" ]; then
    rm -rf "$tree/run/torpor"
fi
for directory in dev etc proc run sys tmp; do
    if [ ! -e "$tree/$directory" ] && [ ! -L "$tree/$directory" ]; then
        mkdir "$tree/$directory"
        [ $directory != tmp ] || chmod 1777 "$tree/tmp"
    fi
done
du --summarize --one-file-system --bytes "$tree" | cut -f1 >$out/tree-bytes
# The file is all holes, so that nothing has to be zeroed: not now, and not by
# the guest later, which would make every microVM's disk differ from its base.
mke2fs -q -t ext4 -b 4096 -m 0 -J size=8 -L root -d "$tree" \
    -U 7b0f7a52-6d1c-4b1e-9a55-0a5e4f2d9c11 \
    -E hash_seed=5c0d6f6e-8a0b-4f57-9d6c-1d7d8a6d2b33,assume_storage_prezeroed=1,lazy_itable_init=0,lazy_journal_init=0 \
    $out/disk.ext4 "$2k"
b rm "$container" >/dev/null
