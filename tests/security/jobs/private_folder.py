"""Two jobs at once, and what one finds of the other's folder."""

import os
import time

from syscalls import attempt, named


def main(what, *args):
    return globals()[what](*args)


def keep(name):
    """Hold a file open in the working folder, until the host ends this."""
    with open(name, "w") as file:
        file.write("of this job")
        file.flush()
        named("victim")
        time.sleep(20)


def look_for(name):
    """A file of another job's, by its name and among all that is in sight."""
    seen = [os.path.join(folder, file) for folder, _, files in os.walk("/tmp") for file in files]
    return [attempt(lambda: open(name).close()), [path for path in seen if name in path]]
