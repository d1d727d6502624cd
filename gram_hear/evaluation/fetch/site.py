"""A site on the web: its address, requests to it, and patience with refusals that may pass.

Source: Zenodo's records API (developers.zenodo.org).
"""

import os
import re
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from importlib.metadata import version
from typing import TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from gram_hear.errors import OptionError, TaskError

SITE, SITE_VARIABLE = "https://zenodo.org", "GRAM_HEAR_ZENODO"
TIMEOUT = 60.0  # seconds without a byte until a connection counts as cut
ATTEMPTS = 5  # consecutive ones without a new byte of a file; the pauses double
QUESTIONS = 3  # attempts at small answers: few, so that offline users learn it soon
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 120.0  # seconds
PASSING = (408, 425, 429, 500, 502, 503, 504)  # refusals that time may heal

Report = Callable[[str], None]  # told in a sentence what goes otherwise than planned
Answer = TypeVar("Answer")


def site_address() -> str:
    """Return the address of the archive's site, without a slash at its end."""
    site = os.environ.get(SITE_VARIABLE, "").strip().rstrip("/") or SITE
    if not is_web_address(site):
        raise OptionError(
            f"The environment variable {SITE_VARIABLE} is {site!r}; it must be the address of a "
            f"site, such as {SITE}."
        )
    return site


def is_web_address(address: str) -> bool:
    """Whether an address is one of the web: urllib would open files too."""
    if re.fullmatch(r"https?://[!-~]+", address) is None:
        return False
    try:
        parts = urlsplit(address)
        return bool(parts.hostname) and parts.port != 0  # a port that cannot be raises
    except ValueError:
        return False


def open_url(url: str, start: int = 0) -> HTTPResponse:
    """Ask for an address, from a byte on."""
    headers = {"User-Agent": f"gram-hear/{version('gram-hear')}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return urlopen(Request(url, headers=headers), timeout=TIMEOUT)


def patiently(
    what: str,
    attempt: Callable[[], Answer],
    report: Report,
    arrived: Callable[[], int] | None = None,
) -> Answer:
    """Return what an attempt returns; try again where a fault may pass.

    Args:
        what: what is asked for, for messages.
        attempt: it raises what urllib raises.
        report: told of each pause.
        arrived: how many bytes are kept: an attempt that brought some was not in vain. None where
            nothing is kept.

    Raises:
        TaskError: where the site refuses for good, or too many attempts in a row brought nothing.
    """
    vain = 0
    while True:
        before = arrived() if arrived else 0
        try:
            return attempt()
        except HTTPError as error:
            reason, asked = f"{error.code} {error.reason}", _retry_after(error)
            error.close()
            if error.code not in PASSING:
                raise TaskError(_refusal(what, error)) from error
        except TaskError:
            raise
        except (OSError, HTTPException, ValueError, OverflowError) as error:  # also of a redirect
            reason, asked = str(getattr(error, "reason", error)) or type(error).__name__, None
        vain = 1 if arrived and arrived() > before else vain + 1
        pause = FIRST_PAUSE * 2 ** (vain - 1) if asked is None else asked
        if vain == (ATTEMPTS if arrived else QUESTIONS) or pause > LONGEST_PAUSE:
            wait = f"; the site asks to wait for {asked:.0f} s" if asked else ""
            kept = "What has arrived is kept: r" if arrived else "R"
            raise TaskError(
                f"{what} could not be fetched ({reason}{wait}). {kept}un the same command again."
            )
        report(f"{what}: {reason}; trying again in {pause:g} s.")
        time.sleep(pause)


def _retry_after(error: HTTPError) -> float | None:
    """Return the seconds that a refusal asks to wait for, where it says so."""
    asked = error.headers.get("Retry-After", "") if error.headers else ""
    return float(asked) if asked.isdecimal() else None


def _refusal(what: str, error: HTTPError) -> str:
    if error.code in (404, 410):
        return (
            f"There is no {what} at {urlsplit(error.url).netloc} ({error.code} {error.reason}); "
            f"check the record's number, and {SITE_VARIABLE} where it is set."
        )
    return f"{what} was refused by {urlsplit(error.url).netloc} ({error.code} {error.reason})."
