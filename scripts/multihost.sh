#!/usr/bin/env bash
# Two "hosts" on this machine, in network namespaces joined by a virtual cable, train one run together.
#
#   scripts/multihost.sh CONFIG OUT [--kill SECONDS] [vlm train options...]
#
# --kill SECONDS takes the second host down (its network first, then its processes) so long after the first step; the
# first must stop within a minute and say so. Run the same line again without --kill: the run goes on from its last state.
# Needs Linux, root (ip netns), and vlm on the PATH. Exit code: that of the first host.
set -euo pipefail

if [[ "${1:-}" == "-h" || "${1:-}" == "--help" || $# -lt 2 ]]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0"
  exit $(( $# < 2 ? 2 : 0 ))
fi
config=$1 out=$2
shift 2
kill_after=""
if [[ "${1:-}" == "--kill" ]]; then
  kill_after=$2
  shift 2
fi
[[ -f "$config" ]] || { echo "error: $config: no such configuration" >&2; exit 2; }
[[ $(id -u) == 0 ]] || { echo "error: network namespaces need root" >&2; exit 2; }
command -v vlm > /dev/null || { echo "error: vlm not found; activate the environment that holds it" >&2; exit 2; }
command -v ip > /dev/null || { echo "error: ip not found; install iproute2" >&2; exit 2; }
python=$(dirname "$(command -v vlm)")/python

one=vlm-host1-$$ two=vlm-host2-$$
cleanup() {
  for host in "$one" "$two"; do
    ip netns pids "$host" 2> /dev/null | xargs -r kill -9 2> /dev/null || true
    ip netns del "$host" 2> /dev/null || true
  done
}
trap cleanup EXIT
ip netns add "$one"
ip netns add "$two"
ip link add veth1 netns "$one" type veth peer name veth2 netns "$two"
ip -n "$one" addr add 10.99.0.1/24 dev veth1
ip -n "$two" addr add 10.99.0.2/24 dev veth2
for host in "$one" "$two"; do ip -n "$host" link set lo up; done
ip -n "$one" link set veth1 up
ip -n "$two" link set veth2 up

launch() { # host, rank, interface, options...
  local host=$1 rank=$2 interface=$3
  shift 3
  ip netns exec "$host" env GLOO_SOCKET_IFNAME="$interface" NCCL_SOCKET_IFNAME="$interface" OMP_NUM_THREADS=1 \
    "$python" -m torch.distributed.run --nnodes 2 --node_rank "$rank" --nproc_per_node 1 \
    --master_addr 10.99.0.1 --master_port 29511 -m vlm train "$config" --out "$out" "$@"
}
lines() { [[ -f "$out/metrics.jsonl" ]] && wc -l < "$out/metrics.jsonl" || echo 0; }
before=$(lines)
launch "$one" 0 veth1 "$@" &
first=$!
launch "$two" 1 veth2 "$@" > /dev/null 2>&1 &
if [[ -n "$kill_after" ]]; then
  while kill -0 $first 2> /dev/null && (( $(lines) <= before )); do sleep 0.2; done
  sleep "$kill_after"
  echo "taking the second host down" >&2
  ip -n "$two" link set veth2 down
  ip netns pids "$two" | xargs -r kill -9
  begun=$SECONDS
fi
code=0
wait $first || code=$?
[[ -n "$kill_after" ]] && echo "the first host stopped after $(( SECONDS - begun )) s with exit code $code" >&2
exit $code
