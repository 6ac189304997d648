#!/bin/sh
# Nginx in the foreground, and beside it what logrotate does on a host: the images have none, and a log that only
# grows fills the disk in an attack. anomaly follows the renamed file to its end.
log=/var/log/nginx/access.json
(
	while sleep 60; do
		size="$(stat -c %s "$log" 2>/dev/null || echo 0)"
		if [ "$size" -gt "${LOG_MAX_BYTES:-268435456}" ]; then
			mv -f "$log" "$log.1" && nginx -s reopen
		fi
	done
) &
exec nginx -g 'daemon off;'
