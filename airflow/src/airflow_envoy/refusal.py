"""The one exception that becomes a refusal: on the API server a 403, in a worker a failed task with the
reason in its log.
"""

from __future__ import annotations

CODES = frozenset(
    {
        "marker_invalid",
        "audience_unknown",
        "task_unknown",
        "task_not_running",
        "key_unavailable",
        "settings_invalid",
        "token_unavailable",
        "token_refused",
        "database_unavailable",
        "internal",
    }
)
"""Every code that a refusal can have. Stable: people search for them."""


class Refusal(Exception):
    """A marked connection gets no credentials.

    ``code`` is one of `CODES`. ``message`` is for a human: what is wrong and what to do about it. It ends up
    in a task's log, so it never holds a secret, a token or a text that a provider sent.
    """

    def __init__(self, code: str, message: str) -> None:
        if code not in CODES:
            raise ValueError(f"`{code}` is no code of a refusal")
        super().__init__(code, message)
        self.code = code
        self.message = message

    @property
    def text(self) -> str:
        """What the task's log shows."""
        return f"airflow-envoy: {self.message} [{self.code}]"

    def __str__(self) -> str:
        return self.text

    def detail(self) -> dict[str, str]:
        """The `detail` of the API server's 403, in the shape of Airflow's own refusals."""
        return {"reason": "access_denied", "code": self.code, "message": self.text}
