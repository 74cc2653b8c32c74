"""`python -m airflow_envoy`: see `airflow_envoy.command`."""

import sys

from airflow_envoy.command import main

if __name__ == "__main__":
    sys.exit(main())
