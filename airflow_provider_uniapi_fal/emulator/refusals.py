"""The bodies with which fal and the gateway turn a call away, by a word for each reason."""

from __future__ import annotations

from airflow_provider_uniapi_fal.emulator.reply import Reply

NOT_FOUND = Reply.json({"status": "NOT_FOUND"}, 404)
BAD_KEY = Reply.json({"detail": "invalid key credentials"}, 401)


def _locked(reason: str) -> Reply:
    return Reply.json({"detail": f"User is locked. Reason: {reason}."}, 403)


REFUSALS = {
    "bad-key": BAD_KEY,
    "bad-token": Reply.gateway_error(401, "Invalid token."),
    "locked": Reply.json(
        {
            "detail": "User is locked. Reason: Exhausted balance. "
            "Top up your balance at fal.ai/dashboard/billing."
        },
        403,
    ),
    "admin-lock": _locked("Admin lock"),
    "top-up": _locked("TOP_UP"),
    "no-balance": Reply.gateway_error(403, "余额不足 (insufficient balance)"),
    "payment-required": Reply.gateway_error(402, "Payment required."),
    "no-channel": Reply.gateway_error(404, "当前分组下没有可用渠道"),
    "no-address": Reply.gateway_error(404, "There is no such address."),
    "not-found": NOT_FOUND,
    "too-large": Reply.gateway_error(413, "The request is too large."),
    "queue-full": Reply.json({"detail": "The queue is longer than the request allows."}, 429),
    "failure": Reply.json({"status": "FAILURE", "error": "The request was not taken in."}),
}
