"""The original's design, as a peer for `cargo xtask bench --peers`: Python, with windows that cost O(1) a request.

Sliding 60-second windows for the site, each address, and each address's errors; per-second counts of the site over 30
minutes and by hour, mean and standard deviation anew every 60 seconds; an address is banned at z > 3 or 5 times the mean,
tightened where it fails more than three times as often as the site. Reads a log, prints one JSON object, enforces nothing.
"""

import json
import sys
from collections import deque
from datetime import datetime
from math import sqrt

WINDOW, HISTORY, RECALC, WARMUP = 60, 1800, 60, 120
Z_SCORE, MULTIPLIER, TIGHT_Z_SCORE, TIGHT_MULTIPLIER, SURGE = 3.0, 5.0, 2.0, 3.0, 3.0
MIN_MEAN, MIN_STDDEV, MIN_ERROR_RATE = 0.2, 0.05, 0.01


class Window:
    """Requests of the newest 60 seconds: one count a second, and their sum."""

    __slots__ = ("seconds", "total")

    def __init__(self):
        self.seconds = deque()
        self.total = 0

    def advance(self, second):
        seconds = self.seconds
        while seconds and seconds[0][0] <= second - WINDOW:
            self.total -= seconds.popleft()[1]

    def add(self, second):
        seconds = self.seconds
        if seconds and seconds[-1][0] == second:
            seconds[-1][1] += 1
        else:
            seconds.append([second, 1])
            self.advance(second)
        self.total += 1


class Baseline:
    """Per-second counts of the site, by half an hour and by hour of the day."""

    def __init__(self):
        self.rolling, self.hours = deque(maxlen=HISTORY), {}
        self.second, self.requests, self.errors, self.due = None, 0, 0, 0
        self.mean, self.stddev, self.error_rate = MIN_MEAN, MIN_STDDEV, MIN_ERROR_RATE

    def add(self, second, failed):
        if self.second is None:
            self.second, self.due = second, second + RECALC
        while self.second < second:
            sample = (self.requests, self.errors)
            self.rolling.append(sample)
            self.hours.setdefault(self.second // 3600 % 24, deque(maxlen=HISTORY)).append(sample)
            self.second, self.requests, self.errors = self.second + 1, 0, 0
        self.requests += 1
        self.errors += failed
        if second >= self.due:
            self.due = second + RECALC
            self.recalculate()

    def recalculate(self):
        hour = self.hours.get(self.second // 3600 % 24, ())
        samples = hour if len(hour) >= 300 else self.rolling
        count, requests = len(samples), sum(r for r, _ in samples)
        mean = requests / count
        variance = sum((r - mean) ** 2 for r, _ in samples) / count
        errors = sum(e for _, e in samples) / max(requests, 1)
        self.mean, self.stddev = max(mean, MIN_MEAN), max(sqrt(variance), MIN_STDDEV)
        self.error_rate = max(errors, MIN_ERROR_RATE)


def is_anomalous(rate, baseline, surge):
    z_score, multiplier = (TIGHT_Z_SCORE, TIGHT_MULTIPLIER) if surge else (Z_SCORE, MULTIPLIER)
    return (rate - baseline.mean) / baseline.stddev > z_score or rate > multiplier * baseline.mean


def main(path):
    site, baseline = Window(), Baseline()
    clients, banned = {}, set()
    records = rejected = 0
    began = None
    with open(path, encoding="utf-8", errors="replace") as log:
        for line in log:
            try:
                row = json.loads(line)
                address, status = row["source_ip"], int(row["status"])
                second = int(datetime.fromisoformat(row["timestamp"]).timestamp())
            except (ValueError, KeyError, TypeError):
                rejected += 1
                continue
            records += 1
            failed = status >= 400
            if began is None:
                began = second
            if address in banned:
                continue
            site.add(second)
            baseline.add(second, failed)
            client = clients.get(address)
            if client is None:
                client = clients[address] = (Window(), Window())
            requests, errors = client
            requests.add(second)
            if failed:
                errors.add(second)
            else:
                errors.advance(second)
            surge = errors.total >= SURGE * baseline.error_rate * requests.total and errors.total > 0
            if second - began >= WARMUP and is_anomalous(requests.total / WINDOW, baseline, surge):
                banned.add(address)
                del clients[address]
    print(json.dumps({"records": records, "rejected": rejected, "bans": len(banned)}))


main(sys.argv[1])
