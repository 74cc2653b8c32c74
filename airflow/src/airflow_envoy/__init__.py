"""The Airflow side of Airflow Envoy: every task's calls carry a verifiable identity, without a change to a
DAG.

Importing this package imports neither Airflow nor cryptography: Airflow's processes load it at their start.
"""

__version__ = "0.1.0"
