"""Dead letters: their groups, one letter, and the letters that an action would send."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.platform.console.jobs import Job
from app.platform.console.pages import HEIGHT, WIDTH, Console, console_of
from app.platform.dead_letters import selection, sending
from app.platform.dead_letters.groups import group, times_of
from app.platform.dead_letters.outcomes import find_applied
from app.platform.dead_letters.selection import Found, SelectionRefused
from app.platform.http.browser import Fields
from app.platform.kafka import codec
from app.platform.kafka.codec import header
from app.platform.kafka.dead_letters import Filter, decoder_of

# The messages of the failure topics that a page reads, and those that it lists besides the groups.
NEWEST, LISTED = 1000, 200
# Letters that arrive between a page and the action must not displace those that the page has shown.
LATER = 1000
# As long as `app dlq replay --wait` waits by default.
WAIT_SECONDS = 60.0
MOST_SKIPPED = 100  # of those whose reasons are shown
BUCKETS = 24

# Those of a URL and of a form that choose letters, as the options of `app dlq` do. `id` is one of those.
_FIELDS = ("consumer", "topic", "error", "key", "since", "until", "undecodable", "to", "id")
# The actions, and the state of a letter after each.
_ACTIONS = {"replay": "sent", "discard": "discarded"}


async def _find(console: Console, given: Fields, newest: int) -> Found:
    """Find the letters among the `newest` messages, the last failure first. Raises HTTPException 400."""
    consumer, topic, error, key = map(given.get, ("consumer", "topic", "error", "key"))
    only = Filter(consumer, topic, error, key, given.time("since"), given.time("until"))
    context, to = console.context, given.get("to")
    try:
        if to is not None:
            await selection.check_reassignment(context, only, to)
        found = await selection.find(
            context, console.database, only, "undecodable" in given, to, newest
        )
    except SelectionRefused as refused:
        raise HTTPException(400, str(refused)) from refused
    letters = [x for x in found.letters if given.get("id") in (None, x.id)]
    letters.sort(key=lambda letter: letter.record.timestamp, reverse=True)
    return replace(found, letters=letters)


async def show(request: Request) -> Response:
    console, given = console_of(request), Fields.of(request.query_params, *_FIELDS)
    found = await _find(console, given, NEWEST)
    times = times_of(found.letters)
    return console.render(
        request,
        "letters",
        "Dead letters",
        given=given,
        found=found,
        newest=NEWEST,
        listed=found.letters[:LISTED],
        groups=group(found),
        times=times,
        bars=lambda some: bars(some, times),
        advice=selection.advice_on_orphaned(console.context, found.waiting),
        consumers=[each.name for each in console.context.subscriptions],
    )


def bars(times: Sequence[datetime], span: Sequence[datetime]) -> list[tuple[float, float]]:
    """Count `times` in equal parts of the time that `span` covers.

    Returns the left edge and the height of each bar that is not empty, in a box of 120 by 24.
    """
    if not times:
        return []
    start = min(span)
    seconds = (max(span) - start).total_seconds() or 1.0
    counts = [0] * BUCKETS
    for time in times:
        share = (time - start).total_seconds() / seconds
        counts[min(BUCKETS - 1, int(share * BUCKETS))] += 1
    step, top = WIDTH / BUCKETS, max(counts)
    return [(n * step, max(1.0, HEIGHT * each / top)) for n, each in enumerate(counts) if each]


# One letter


async def show_letter(request: Request) -> Response:
    console, context = console_of(request), console_of(request).context
    try:
        letter = await selection.find_one(context, request.path_params["id"])
    except SelectionRefused as refused:
        raise HTTPException(404, str(refused)) from refused
    applied = await find_applied(console.database, context, [letter])
    decoder = decoder_of(letter.consumer, context.registry, context.subscriptions)
    return console.render(
        request,
        "letter",
        f"Dead letter {letter.id}",
        letter=letter,
        applied=letter.identity in applied,
        header=lambda name: header(letter.record.headers, name),
        names=codec,
        body=console.body(letter.record.value),
        decoded=console.decoded(decoder, letter.record, letter.origin),
        advice=selection.advice_on_orphaned(context, [letter]),
        given=Fields(consumer=letter.consumer, topic=letter.origin, id=letter.id),
    )


# Actions


async def show_plan(request: Request) -> Response:
    """Show what an action would do: the letters that it would send, and those that it would not."""
    console, given = console_of(request), Fields.of(request.query_params, *_FIELDS)
    action = Fields(request.query_params).choice("action", _ACTIONS)
    found = await _find(console, given, NEWEST)
    chosen = _choose(console, given, action, found)
    count = len(chosen.letters)
    return console.render(
        request,
        "letters_plan",
        f"{action.capitalize()} {count} dead letter{'' if count == 1 else 's'}",
        action=action,
        given=given,
        found=found,
        newest=NEWEST,
        chosen=chosen,
        others=selection.takers(console.context, found) if "consumer" in given else [],
    )


async def start(request: Request) -> Response:
    """Begin the action of a plan, on the letters that its page has shown, and no others.

    It is done as `app dlq` does it, with its progress in a job. A replay's outcome is awaited.
    """
    console = console_of(request)
    form = await console.form(request)
    given, action = Fields.of(form, *_FIELDS), form.choice("action", _ACTIONS)
    shown = set(form.get("ids", "").split())
    found = await _find(console, given, NEWEST + LATER)
    letters = [x for x in _choose(console, given, action, found).letters if x.id in shown]

    async def work(job: Job) -> None:
        progress, missing = sending.Progress(letters), len(shown) - len(letters)
        job.refresh = lambda: _show_progress(job, progress, _ACTIONS[action], missing)
        if action == "discard":
            await sending.discard(console.context, progress)
        else:
            await sending.replay(
                console.context, console.database, progress, given.get("to"), max_wait=WAIT_SECONDS
            )

    title = f"{action} {len(shown)} dead letters ({given.url(id=None) or 'all'})"
    return console.begin(request, title, work)


def _show_progress(job: Job, progress: sending.Progress, done: str, missing: int) -> None:
    """Show the progress in the job. `missing` letters of the plan are not among those that are sent."""
    job.progress(len(progress.sent) + len(progress.skipped), len(progress.letters))
    job.lines = progress.summary(done)
    if missing:
        job.lines.append(
            f"{missing} of the page left out: since then they were applied, discarded, or failed again"
        )
    job.lines += [f"skipped {x.id}: {reason}" for x, reason in progress.skipped[:MOST_SKIPPED]]
    if len(progress.skipped) > MOST_SKIPPED:
        job.lines.append(f"and {len(progress.skipped) - MOST_SKIPPED} others skipped")
    if progress.outcome is not None:
        job.lines.append(str(progress.outcome))


def _choose(console: Console, given: Fields, action: str, found: Found) -> selection.Choice:
    if action == "discard":
        return selection.Choice(list(found.letters), [])
    return selection.choose(console.context, found, given.get("to"), "undecodable" in given)


ROUTES = [
    Route("/letters", show),
    Route("/letters/plan", show_plan),
    Route("/letters/start", start, methods=["POST"]),
    Route("/letters/{id}", show_letter),
]
