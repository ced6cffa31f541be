# In the guest, as root, in /job: installs the wheels and runs the checks.
set -eu
read -r suite wanted < /job/checks/wanted || true
if [ "$suite" = systemd ]; then
    # shellcheck disable=SC2086
    exec python3 /job/checks/systemd_checks.py /job/source /job/wheels $wanted
fi
python3 -m venv --without-pip /opt/kvmd
python3 -m pip -q --python /opt/kvmd/bin/python install --no-index --find-links /job/wheels --no-compile 'libkvm[daemon]' pytest pytest-asyncio
echo "installed, $(cut -d' ' -f1 /proc/uptime) s after the boot"
# shellcheck disable=SC2046
exec /opt/kvmd/bin/python /job/checks/live_checks.py $(cat /job/checks/wanted)
