#!/bin/sh
# Nginx in the foreground, and beside it what logrotate does on a host (the images have none, and a log that only
# grows fills the disk in an attack; anomaly follows the renamed file to its end), and what a process of another
# container cannot do: tell Nginx that anomaly's deny list has changed.
log=/var/log/nginx/access.json
list=/var/lib/nginx-deny/anomaly.list
[ -e "$list" ] || : > "$list"

# How many generations of workers wait for their last clients. Those of one reload start together: less than 0.5 s apart.
old_generations() {
	starts="$(for file in $(grep -ls 'worker process is shutting dow[n]' /proc/[0-9]*/cmdline); do
		cut -d ' ' -f 22 "${file%cmdline}stat" 2>/dev/null
	done | sort -n)"
	count=0
	last=-50
	for start in $starts; do
		[ "$((start - last))" -lt 50 ] || count="$((count + 1))"
		last="$start"
	done
	echo "$count"
}

(
	known="$(stat -c %i:%Y "$list")"
	while sleep 1; do
		size="$(stat -c %s "$log" 2>/dev/null || echo 0)"
		if [ "$size" -gt "${LOG_MAX_BYTES:-268435456}" ]; then
			mv -f "$log" "$log.1" && nginx -s reopen
		fi
		now="$(stat -c %i:%Y "$list")"
		# anomaly changes the list seldom (every 2 to 60 s); a reload also waits while more than one old generation is alive.
		if [ "$now" != "$known" ] && [ "$(old_generations)" -le 1 ]; then
			known="$now"
			nginx -s reload
		fi
	done
) &
# Without the timeout a slow client would keep its generation of workers for as long as it likes.
exec nginx -g 'daemon off; worker_shutdown_timeout 10s;'
