"""The bodies with which each family of the gateway turns a call away, by a word for each reason."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from airflow_provider_uniapi_fal.emulator.reply import Reply

NOT_FOUND = Reply.json({"status": "NOT_FOUND"}, 404)
BAD_KEY = Reply.json({"detail": "invalid key credentials"}, 401)
OUT_OF_CHANNELS = "当前分组下没有可用渠道"
NO_BALANCE = "余额不足 (insufficient balance)"
# What the gateway itself says, before any vendor is asked.
OF_THE_GATEWAY = {
    "bad-token": (401, "Invalid token."),
    "no-balance": (403, NO_BALANCE),
    "payment-required": (402, "Payment required."),
    "no-channel": (404, OUT_OF_CHANNELS),
    "no-address": (404, "There is no such address."),
    "too-large": (413, "The request is too large."),
}
KLING_CODES = {
    1000: (401, "Authentication failed"),
    1001: (401, "Authorization is empty"),
    1002: (401, "Authorization is invalid"),
    1003: (401, "Authorization is not yet valid"),
    1004: (401, "Authorization has expired"),
    1100: (429, "Account exception"),
    1101: (429, "Account in arrears"),
    1102: (429, "Resource pack depleted or expired"),
    1103: (403, "Unauthorized access to the requested resource"),
    1200: (400, "Invalid request parameters"),
    1201: (400, "Invalid parameter value"),
    1202: (404, "Invalid request method"),
    1203: (404, "The requested resource does not exist"),
    1300: (400, "Platform policy triggered"),
    1301: (400, "Content security policy of the platform triggered"),
    1302: (429, "API requests too frequent"),
    1303: (429, "Parallel tasks exceed the limit of the resource pack"),
    1304: (429, "IP whitelist policy triggered"),
    5000: (500, "Internal server error"),
    5001: (503, "Server temporarily unavailable"),
    5002: (504, "Internal server timeout"),
}


def _locked(reason: str) -> Reply:
    return Reply.json({"detail": f"User is locked. Reason: {reason}."}, 403)


def kling_error(code: int, message: str = "", *, status: int | None = None) -> Reply:
    """Return an error in Kling's envelope, under the HTTP code that belongs to it or another one."""
    own_status, own_message = KLING_CODES[code]
    body = {"code": code, "message": message or own_message, "request_id": str(uuid.uuid4())}
    return Reply.json(body, status or own_status)


def openai_error(status: int, message: str, *, code: str, param: str | None = None) -> Reply:
    """Return an error in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return Reply.json({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)


def task_error(status: int, code: str, message: str) -> Reply:
    """Return an error in the form in which some gateways speak of tasks."""
    return Reply.json({"code": code, "message": message, "data": None}, status)


def detail(status: int, message: str) -> Reply:
    """Return an error of Luma."""
    return Reply.json({"detail": message}, status)


REFUSALS = {
    "bad-key": BAD_KEY,
    "locked": _locked("Exhausted balance. Top up your balance at fal.ai/dashboard/billing"),
    "admin-lock": _locked("Admin lock"),
    "top-up": _locked("TOP_UP"),
    "not-found": NOT_FOUND,
    "queue-full": Reply.json({"detail": "The queue is longer than the request allows."}, 429),
    "failure": Reply.json({"status": "FAILURE", "error": "The request was not taken in."}),
    **{word: Reply.gateway_error(*said) for word, said in OF_THE_GATEWAY.items()},
    **{f"kling-{code}": kling_error(code) for code in KLING_CODES},
}
"""fal's words for every reason; what is not fal's own is the same in every family."""

REASONS = tuple(REFUSALS)

IN_OTHER_WORDS = {
    "kling": {
        "bad-key": kling_error(1000),
        "locked": kling_error(1101),
        "admin-lock": kling_error(1103),
        "top-up": kling_error(1102),
        "not-found": kling_error(1203),
        "queue-full": kling_error(1303),
        "failure": kling_error(5000, status=200),
    },
    "luma": {
        "bad-key": detail(401, "Not authenticated"),
        "locked": detail(403, "Insufficient credits"),
        "admin-lock": detail(403, "The account is locked"),
        "top-up": detail(403, "Insufficient credits"),
        "not-found": detail(404, "Generation not found"),
        "queue-full": detail(429, "Too many generations"),
        "failure": task_error(200, "fail_to_submit_task", "The request was not taken in."),
    },
    "openai-images": {
        "bad-key": openai_error(401, "Incorrect API key provided.", code="invalid_api_key"),
        "locked": Reply.gateway_error(403, NO_BALANCE),
        "admin-lock": openai_error(403, "The account is deactivated.", code="account_deactivated"),
        "top-up": Reply.gateway_error(403, NO_BALANCE),
        "not-found": openai_error(404, "The model does not exist.", code="model_not_found"),
        "queue-full": openai_error(429, "Too many requests.", code="rate_limit_exceeded"),
        "failure": openai_error(200, "The request was not taken in.", code="task_failed"),
    },
}


@dataclass(frozen=True)
class Manners:
    """How a family of the gateway words what goes wrong, in one of the gateway's two styles."""

    family: str
    gateway_errors: str = "openai"

    def refusal(self, reason: str) -> Reply:
        """Return the answer to a call that is turned away for a reason."""
        if reason in OF_THE_GATEWAY and self._speaks_of_tasks:
            status, message = OF_THE_GATEWAY[reason]
            return task_error(status, reason.replace("-", "_"), message)
        return IN_OTHER_WORDS.get(self.family, {}).get(reason, REFUSALS[reason])

    def rate_limit(self) -> Reply:
        """Return the answer to a call that comes too soon."""
        if self.family == "kling":
            return kling_error(1302)
        return self.error(429, "Rate limit reached, try again later.")

    def error(self, status: int, message: str) -> Reply:
        """Return any other error."""
        if self._speaks_of_tasks:
            return task_error(status, str(status), message)
        if self.family == "kling" and status >= 500:
            code = next((code for code, (own, _) in KLING_CODES.items() if own == status), 5000)
            return kling_error(code, message, status=status)
        if self.family == "luma":
            return detail(status, message)
        return Reply.gateway_error(status, message)

    @property
    def _speaks_of_tasks(self) -> bool:
        return self.gateway_errors == "task" and self.family in ("kling", "luma")
