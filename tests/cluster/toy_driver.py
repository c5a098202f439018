"""python toy_driver.py FOLDER COUNT: drive COUNT toy jobs on four made-up GPUs of this process's own host."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from toy_jobs import TYPE, toy  # noqa: E402

from gdn_lab.cluster.driver import Driver  # noqa: E402
from gdn_lab.cluster.hosts import ThisHost  # noqa: E402

if __name__ == "__main__":
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    jobs = [toy(n, seconds=0.1) for n in range(count)]
    driver = Driver(folder, ThisHost(TYPE, ["0", "1", "2", "3"]), lambda kind: jobs)
    driver.run()
    sys.exit(driver.scheduler.left > 0)
