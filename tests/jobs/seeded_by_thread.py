"""As `seeded`, where a thread goes on drawing in the host."""

import threading
import time

from seeded import draw_without_files, main  # noqa: F401


def go_on():
    while True:
        draw_without_files()
        time.sleep(0.002)


threading.Thread(target=go_on, daemon=True).start()
