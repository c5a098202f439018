"""python toy_ray_driver.py FOLDER COUNT SECONDS: drive COUNT toy jobs on the Ray cluster that RAY_ADDRESS names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from toy_jobs import toy  # noqa: E402

from gdn_lab.cluster.driver import Driver  # noqa: E402
from gdn_lab.cluster.ray_hosts import RayHosts  # noqa: E402

if __name__ == "__main__":
    folder, count, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    jobs = [toy(n, seconds=seconds) for n in range(count)]
    driver = Driver(folder, RayHosts(None, made_up_gpus=0), lambda kind: jobs)
    driver.run()
    sys.exit(driver.scheduler.left > 0)
