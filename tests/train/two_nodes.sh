#!/bin/bash
# Runs a command on two nodes: network namespaces of one machine, joined by a cable.
#   unshare --user --map-root-user --net bash two_nodes.sh COMMAND
# In the command NODE_RANK is 0 or 1, and the first node's address MASTER_ADDR.
set -e
unshare --net sleep infinity &
other=$!
trap 'kill $other 2>/dev/null || true' EXIT
enter() { nsenter --net="/proc/$other/ns/net" "$@"; }
until [ "$(readlink "/proc/$other/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link set lo up && enter ip link set lo up
ip link add eth0 type veth peer name eth0 netns "$other"
ip addr add 10.77.0.1/24 dev eth0 && ip link set eth0 up
enter ip addr add 10.77.0.2/24 dev eth0 && enter ip link set eth0 up
export MASTER_ADDR=10.77.0.1 MASTER_PORT=29577 GLOO_SOCKET_IFNAME=eth0
NODE_RANK=1 enter bash -c "$1" >second.log 2>&1 &
second=$!
NODE_RANK=0 bash -c "$1" && code=0 || code=$?
wait "$second" || code=$?
exit "$code"
