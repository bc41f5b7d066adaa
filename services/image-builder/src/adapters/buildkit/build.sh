# Builds the image of /build/context with BuildKit, which is inside dockerd. Arguments: processes that a step may have.
#
# /build/bases      tars of base images, each called NAME@VERSION-DIGEST.tar.zst
# /build/shared     what is made: image-id, image.json. Dockerfile is there, and names: a line for each name of a base, with the
#                   base as it is called above, the name's repository and its tag
# /cache            layers, of this build's owner
export DOCKER_HOST=unix:///run/docker.sock BUILDX_NO_DEFAULT_ATTESTATIONS=1 BUILDX_GIT_INFO=0
# The whole output of a step, unless it is a flood, at any speed.
export BUILDKIT_STEP_LOG_MAX_SIZE=16777216 BUILDKIT_STEP_LOG_MAX_SPEED=-1
api() { curl --silent --show-error --fail --output "$answer" --unix-socket /run/docker.sock "$@"; }
answer=/run/answer

dockerd --rootless --bridge=none --iptables=false --ip6tables=false --storage-driver=overlay2 --data-root=/cache/docker \
    --exec-root=/run/docker --pidfile=/run/docker.pid --host="$DOCKER_HOST" --config-file=/run/torpor/dockerd.json \
    >/run/dockerd.log 2>&1 &
daemon=$!
until api http://docker/_ping 2>/dev/null; do
    if ! kill -0 $daemon 2>/dev/null; then
        tail -n 20 /run/dockerd.log
        exit 125
    fi
    sleep 0.02
done

# Images of earlier builds: their layers stay as the cache.
api -X POST http://docker/images/prune
for tar in /build/bases/*; do
    [ -e "$tar" ] || continue
    name=$(basename "$tar" .tar.zst)
    repository=torpor.internal/${name%@*} tag=${name#*@}
    if ! api "http://docker/images/$repository:$tag/json" 2>/dev/null; then
        echo "Unpacking the base image ${name%@*}."
        # Dying in here leaves layers that no image names, which the daemon drops.
        api -X POST -T "$tar" "http://docker/images/create?fromSrc=-&repo=$repository&tag=$tag&changes=$CHANGES"
    fi
done
while read -r base repository tag; do
    api -X POST "http://docker/images/torpor.internal/$base/tag?repo=$repository&tag=$tag"
done </build/shared/names

/usr/libexec/docker/cli-plugins/docker-buildx build --progress=plain --network=host --ulimit="nproc=$1:$1" \
    --iidfile=/build/shared/image-id --file=/build/shared/Dockerfile /build/context
api "http://docker/images/$(cat /build/shared/image-id)/json"
mv "$answer" /build/shared/image.json
kill $daemon
wait $daemon || true
