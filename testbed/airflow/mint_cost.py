"""Measures what an identity costs: reads of a marked and of an unmarked connection from a running API server,
in turn.

Run it where Airflow's configuration is (AIRFLOW_HOME, the signing key of task tokens) and at least one task
instance is running. It makes the task tokens itself, by Airflow's own generator, and reads as a task's
supervisor does.

python mint_cost.py --marked orders_api --plain plain_api --readers 20 --rounds 30

Prints medians and 90th percentiles in milliseconds, and ends with 1 if the difference of the medians exceeds
--limit.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import threading
import time
from urllib.parse import quote, urlsplit


def main() -> int:
    """The command."""
    options = arguments()
    tokens = task_tokens(options.readers)
    url = urlsplit(options.api_server or execution_api())
    times: dict[str, list[float]] = {options.marked: [], options.plain: []}
    problems: list[str] = []
    barrier = threading.Barrier(options.readers)
    lock = threading.Lock()

    def reader(number: int) -> None:
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=30)
        mine: dict[str, list[float]] = {name: [] for name in times}
        names = [options.marked, options.plain] if number % 2 else [options.plain, options.marked]
        try:
            for turn in range(options.rounds + options.warm):
                for name in names:
                    barrier.wait(60) if turn == 0 else None
                    took = read(
                        connection, url.path, name, tokens[number % len(tokens)], name == options.marked
                    )
                    if turn >= options.warm:
                        mine[name].append(took)
        except Exception as error:  # noqa: BLE001 - reported below
            barrier.abort()
            with lock:
                problems.append(f"{type(error).__name__}: {error}")
        finally:
            connection.close()
        with lock:
            for name, values in mine.items():
                times[name] += values

    threads = [threading.Thread(target=reader, args=(number,)) for number in range(options.readers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - started
    if problems:
        print(f"failed: {problems[0]}", file=sys.stderr)
        return 2
    result = {
        "readers": options.readers,
        "task_instances": len(tokens),
        "reads": sum(map(len, times.values())),
        "reads_per_second": round(sum(map(len, times.values())) / wall, 1),
        "marked_ms": figures(times[options.marked]),
        "plain_ms": figures(times[options.plain]),
    }
    cost = statistics.median(times[options.marked]) - statistics.median(times[options.plain])
    result["cost_at_median_ms"] = round(cost * 1e3, 2)
    print(json.dumps(result))
    return 0 if cost * 1e3 <= options.limit else 1


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--marked", required=True, help="id of a marked connection")
    parser.add_argument("--plain", required=True, help="id of a connection that is not marked")
    parser.add_argument("--readers", type=int, default=20, help="parallel readers (20)")
    parser.add_argument("--rounds", type=int, default=30, help="reads of each connection by each reader (30)")
    parser.add_argument("--warm", type=int, default=3, help="rounds before, which do not count (3)")
    parser.add_argument(
        "--limit", type=float, default=10.0, help="milliseconds that an identity may cost (10)"
    )
    parser.add_argument("--api-server", help="URL of the execution API ([core] execution_api_server_url)")
    return parser.parse_args()


def execution_api() -> str:
    """The URL by which tasks reach the execution API."""
    from airflow.configuration import conf

    fallback = conf.get("api", "base_url", fallback="http://localhost:8080/").rstrip("/") + "/execution/"
    return conf.get("core", "execution_api_server_url", fallback=None) or fallback


def task_tokens(most: int) -> list[str]:
    """A task token for each of up to ``most`` running task instances."""
    from airflow.api_fastapi.auth.tokens import JWTGenerator, get_signing_args
    from airflow.configuration import conf
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        query = select(TaskInstance.id).where(TaskInstance.state == "running").limit(most)
        running = [str(ti_id) for ti_id in session.scalars(query)]
    if not running:
        sys.exit("no task instance is running: trigger a DAG whose task takes a while")
    generator = JWTGenerator(
        valid_for=600,
        audience=conf.get_mandatory_list_value("execution_api", "jwt_audience")[0],
        issuer=conf.get("api_auth", "jwt_issuer", fallback=None),
        **get_signing_args(make_secret_key_if_needed=False),
    )
    return [generator.generate({"sub": ti_id, "scope": "execution"}) for ti_id in running]


def read(connection: http.client.HTTPConnection, path: str, name: str, token: str, marked: bool) -> float:
    """Reads one connection and checks what came. Returns the seconds that it took."""
    started = time.perf_counter()
    connection.request(
        "GET",
        f"{path.rstrip('/')}/connections/{quote(name, safe='')}",
        headers={"authorization": f"Bearer {token}", "accept": "application/json"},
    )
    response = connection.getresponse()
    body = response.read()
    took = time.perf_counter() - started
    if response.status != 200:
        raise ValueError(f"{name}: HTTP {response.status}: {body[:300]!r}")
    has_identity = "X-Airflow-Identity" in json.loads(json.loads(body)["extra"] or "{}")
    if has_identity != marked:
        raise ValueError(f"{name}: {'no' if marked else 'an'} identity")
    return took


def figures(seconds: list[float]) -> dict[str, float]:
    """Median and 90th percentile in milliseconds."""
    return {
        "p50": round(statistics.median(seconds) * 1e3, 2),
        "p90": round(statistics.quantiles(seconds, n=10)[-1] * 1e3, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
