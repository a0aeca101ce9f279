"""Runs and points as the JSON that MLflow answers with: protobuf's names and numbers, indented by two.

MLflow makes an object of each row, a message of each object, a dictionary of each message, and prints that in Python.
"""

import asyncio
from json.encoder import encode_basestring_ascii as quoted

from mlflow.entities import RunStatus
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

# What repr() spells in another way than protobuf's JSON.
SPELLED = {"nan": '"NaN"', "inf": '"Infinity"', "-inf": '"-Infinity"'}
STATUSES = {RunStatus.to_string(status) for status in RunStatus.all_status()}
AT_ONCE = 2**18  # characters, before other requests have their turn
LARGEST = 2**24  # characters of an answer: a longer one is MLflow's, which makes it in a thread


class Unknown(Exception):
    """A row is not such as this prints: MLflow is to be asked."""


def number(value, nan):
    """A metric's value."""
    text = "nan" if nan else repr(value)
    return SPELLED.get(text, text)


def points(columns, start, run_id=None):
    """Each point of the COLUMNS key, time, step, value and whether it is NaN.

    start: of a line of its object.  run_id: that is named in each of them.
    """
    inner = start + "  "
    end = f"{start}}}" if run_id is None else f',{inner}"run_id": {quoted(run_id)}{start}}}'
    return (
        f'{{{inner}"key": {quoted(key)},{inner}"value": {number(value, nan)},'
        f'{inner}"timestamp": {time},{inner}"step": {step}{end}'
        for key, time, step, value, nan in zip(*columns)
    )


def pairs(keys, values, start):
    """Each parameter, or tag."""
    inner = start + "  "
    return (
        f'{{{inner}"key": {quoted(key)},{inner}"value": {quoted(value)}{start}}}' for key, value in zip(keys, values)
    )


def listed(name, entries, start):
    """A field with a list of ENTRIES, which protobuf leaves out where there are none."""
    within = f",{start}  ".join(entries)
    return [f'"{name}": [{start}  {within}{start}]'] if within else []


def whole(fields, start):
    """An object of FIELDS."""
    return f"{{{start}  " + f",{start}  ".join(fields) + f"{start}}}" if fields else "{}"


def info(row, tags, start):
    """What a run is, without what was logged to it."""
    if None in (row["user_id"], row["start_time"], row["experiment_id"]) or row["status"] not in STATUSES:
        raise Unknown("a run without user, status or time")
    name = row["name"] or tags.get(MLFLOW_RUN_NAME) or row["name"]
    run_id = quoted(row["run_uuid"])
    fields = [f'"run_uuid": {run_id}', f'"experiment_id": "{row["experiment_id"]}"']
    if name is not None:
        fields.append(f'"run_name": {quoted(name)}')
    fields += [
        f'"user_id": {quoted(row["user_id"])}',
        f'"status": "{row["status"]}"',
        f'"start_time": {row["start_time"]}',
    ]
    if row["end_time"]:
        fields.append(f'"end_time": {row["end_time"]}')
    if row["artifact_uri"]:
        fields.append(f'"artifact_uri": {quoted(row["artifact_uri"])}')
    return whole([*fields, f'"lifecycle_stage": {quoted(row["lifecycle_stage"])}', f'"run_id": {run_id}'], start)


def run(row, start, used=()):
    """A run, from what reads.RUNS selects.  start: of a line of its object.  used: models that it has read."""
    within, entry = start + "  ", start + "      "
    logged = [row[name] or () for name in ("metrics", "times", "steps", "metric_values", "nans")]
    params, tags = (row["params"] or (), row["param_values"] or ()), (row["tags"] or (), row["tag_values"] or ())
    if None in params[1] or None in tags[1] or None in logged[1]:
        raise Unknown("a parameter, a tag or a time without a value")
    data = [
        *listed("metrics", points(logged, entry), within + "  "),
        *listed("params", pairs(*params, entry), within + "  "),
        *listed("tags", pairs(*tags, entry), within + "  "),
    ]
    inputs = [whole([f'"model_id": {quoted(one)}'], entry) for one in used]
    made = [
        whole([f'"model_id": {quoted(one)}', f'"step": {step}'], entry)
        for one, step in zip(row["models"] or (), row["model_steps"] or ())
    ]
    return whole(
        [
            f'"info": {info(row, dict(zip(*tags)), within)}',
            f'"data": {whole(data, within)}',
            f'"inputs": {whole(listed("model_inputs", inputs, within + "  "), within)}',
            f'"outputs": {whole(listed("model_outputs", made, within + "  "), within)}',
        ],
        start,
    )


def created(row, tags):
    """The answer to what makes a run: its ROW of the table, and the TAGS that it begins with."""
    within, start = "\n    ", "\n  "
    data = listed("tags", pairs(tags, tags.values(), within + "    "), within + "  ")
    fields = [f'"info": {info(row, tags, within)}', f'"data": {whole(data, within)}', '"inputs": {}']
    return whole([f'"run": {whole(fields, start)}'], "\n").encode()


def changed(row):
    """The answer to what changes a run: its ROW of the table, with the tag of its name."""
    printed = info(row, {MLFLOW_RUN_NAME: row["name_tag"]}, "\n  ")
    return whole([f'"run_info": {printed}'], "\n").encode()


async def page(name, entries, token):
    """An answer: the list NAME of ENTRIES, which are printed as they are asked for, and the TOKEN of the next page."""
    printed, size, since = [], 0, 0
    for entry in entries:
        printed.append(entry)
        since += len(entry)
        if since > AT_ONCE:
            size, since = size + since, 0
            if size > LARGEST:
                raise Unknown("a very long answer")
            await asyncio.sleep(0)
    return whole(
        [*listed(name, printed, "\n  "), *([f'"next_page_token": {quoted(token)}'] if token else [])], "\n"
    ).encode()
