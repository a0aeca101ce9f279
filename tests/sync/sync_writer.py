"""A job that records: run id, database, number of points and seconds between them are its arguments."""

from __future__ import annotations

import sqlite3
import sys
import time


def main() -> None:
    run_id, database, points, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    connection = sqlite3.connect(database, timeout=60)
    for step in range(points):
        now = int(time.time() * 1000)
        row = (run_id, "loss", 1.0 / (step + 1), now, step)
        connection.execute(
            "INSERT INTO metrics (run_uuid, key, value, timestamp, step, is_nan) VALUES (?, ?, ?, ?, ?, 0)", row
        )
        connection.commit()
        time.sleep(pause)
    end = ("FINISHED", int(time.time() * 1000), run_id)
    connection.execute("UPDATE runs SET status = ?, end_time = ? WHERE run_uuid = ?", end)
    connection.commit()


if __name__ == "__main__":
    main()
