# shellcheck shell=bash
# Sourced by the job at its end, whatever the end was: nothing stays on the node.
trap '' HUP INT TERM
if [[ -n ${SCRIPT_PID:-} ]] && kill -TERM "${SCRIPT_PID}" 2> /dev/null; then
  for ((labtrack_waited = 0; labtrack_waited < 100; labtrack_waited++)); do
    kill -0 "${SCRIPT_PID}" 2> /dev/null || break
    sleep 0.2
  done
fi
case ${labtrack_run:-} in
  */labtrack-ood-*) rm -rf -- "${labtrack_run}" ;;
esac
