#!/bin/sh
# Nginx in the foreground, and beside it what logrotate does on a host (the images have none, and a log that only
# grows fills the disk in an attack; anomaly follows the renamed file to its end), and what a process of another
# container cannot do: tell Nginx that anomaly's deny list has changed.
log=/var/log/nginx/access.json
list=/var/lib/nginx-deny/anomaly.list
[ -e "$list" ] || : > "$list"
(
	known="$(stat -c %i:%Y "$list")"
	while sleep 1; do
		size="$(stat -c %s "$log" 2>/dev/null || echo 0)"
		if [ "$size" -gt "${LOG_MAX_BYTES:-268435456}" ]; then
			mv -f "$log" "$log.1" && nginx -s reopen
		fi
		now="$(stat -c %i:%Y "$list")"
		if [ "$now" != "$known" ]; then
			known="$now"
			nginx -s reload
		fi
	done
) &
exec nginx -g 'daemon off;'
