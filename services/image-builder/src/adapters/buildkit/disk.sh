# Makes /build/shared/disk.ext4 from the image that build.sh has left. Arguments: KiB of the disk.
#
# The layers are mounted as one tree, with a layer of ours on top, by the short names that the daemon keeps for that: what the
# kernel takes is bounded by a page, in one call (in calls for each option, by 256 bytes).
export LIBMOUNT_FORCE_MOUNT2=always
out=/build/shared
layers=$(jq -r '.GraphDriver.Data | .UpperDir, ((.LowerDir // "") | split(":")[]) | select(. != "")' $out/image.json)
cd /cache/docker/overlay2
lower=
for layer in $layers; do
    lower=$lower:l/$(cat "$(dirname "$layer")/link")
done
mkdir /run/tree $out/top $out/work
mount -t overlay overlay -o "userxattr,lowerdir=${lower#:},upperdir=$out/top,workdir=$out/work" /run/tree
cd /
for directory in dev etc proc run sys tmp; do
    if [ ! -e /run/tree/$directory ] && [ ! -L /run/tree/$directory ]; then
        mkdir /run/tree/$directory
        [ $directory != tmp ] || chmod 1777 /run/tree/tmp
    fi
done
du --summarize --one-file-system --bytes /run/tree | cut -f1 >$out/tree-bytes
files=$(find /run/tree -xdev | wc -l)
# As many as the file system has by itself, unless there are more already.
inodes=$(($1 / 16))
[ "$inodes" -gt $((files + files / 4)) ] || inodes=$((files + files / 4))
# The file is all holes, so that nothing has to be zeroed: not now, and not by
# the guest later, which would make every microVM's disk differ from its base.
mke2fs -q -t ext4 -b 4096 -m 0 -N "$inodes" -J size=8 -L root -d /run/tree -O ^orphan_file,^metadata_csum_seed \
    -U 7b0f7a52-6d1c-4b1e-9a55-0a5e4f2d9c11 \
    -E hash_seed=5c0d6f6e-8a0b-4f57-9d6c-1d7d8a6d2b33,assume_storage_prezeroed=1,lazy_itable_init=0,lazy_journal_init=0 \
    $out/disk.ext4 "$1k"
umount /run/tree
