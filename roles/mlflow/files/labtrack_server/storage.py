"""Artifacts on their way through the server: from and to the store, without a file on the server's disk.

MLflow copies an artifact to its temporary folder before it sends it, and a proxied upload too before it stores it.  The
disk is PostgreSQL's as well, and an artifact can be larger than it.  So both are streamed.  The few things that MLflow
can only read as a file (a trace's attachment, say) are copied up to COPIED_AT_MOST.

The repository is also the last line of `locations`: in this process it is the only kind there is, and it is for places
in the lab's storage alone, whatever a row in the database says.
"""

import asyncio
import mimetypes
import posixpath

from botocore.exceptions import ClientError
from flask import Response, request
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE
from mlflow.server import handlers
from mlflow.store.artifact.artifact_repo import StreamUploadMixin
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository
from mlflow.utils.mime_type_utils import _guess_mime_type
from mlflow.utils.uri import validate_path_is_safe

from labtrack_server.locations import invalid, storage
from labtrack_server.patching import replace

MIB = 2**20
COPIED_AT_MOST = 64 * MIB
CHUNK = MIB
# An upload holds so much of it in memory; the store takes at most 10,000 parts, so 78 GiB.
PART = 8 * MIB
MISSING = {"404", "NoSuchKey", "NoSuchBucket"}
OUT_OF_RANGE = {"416", "InvalidRange"}
# They lead to other places by themselves, each of which is asked for here again.
INDIRECT = {"runs", "models"}


class LabRepository(S3ArtifactRepository, StreamUploadMixin):
    """Artifacts in the lab's own storage; made by repository_for, which has looked at the place."""

    def _place(self, path):
        bucket, root = self.parse_s3_compliant_uri(self.artifact_uri)
        return {"Bucket": bucket, "Key": posixpath.join(root, path), **self._bucket_owner_params}

    def _download_file(self, remote_file_path, local_path):
        place = self._place(remote_file_path)
        try:
            size = self._get_s3_client().head_object(**place)["ContentLength"]
        except ClientError as error:
            raise _answer(error, remote_file_path) from error
        if size > COPIED_AT_MOST:
            raise invalid(
                f"'{remote_file_path}' has {size // MIB} MiB, and this server reads at most "
                f"{COPIED_AT_MOST // MIB} MiB into a file. To fix: read it on your side, with "
                "mlflow.artifacts.download_artifacts()."
            )
        super()._download_file(remote_file_path, local_path)

    def response(self, path):
        """The HTTP response that streams one artifact, or the range of it that the request asks for."""
        wanted = request.headers.get("Range")
        try:
            found = self._get_s3_client().get_object(**self._place(path), **({"Range": wanted} if wanted else {}))
        except ClientError as error:
            raise _answer(error, path) from error
        body = found["Body"]
        answer = Response(
            body.iter_chunks(CHUNK),
            status=found["ResponseMetadata"]["HTTPStatusCode"],
            mimetype=_guess_mime_type(path),
            direct_passthrough=True,
        )
        answer.call_on_close(body.close)
        answer.content_length = found["ContentLength"]
        answer.accept_ranges = "bytes"
        for header, value in (("ETag", found.get("ETag")), ("Content-Range", found.get("ContentRange"))):
            if value:
                answer.headers[header] = value
        answer.last_modified = found["LastModified"]
        answer.cache_control.no_cache = True
        answer.headers["Content-Disposition"] = handlers._content_disposition_attachment(posixpath.basename(path))
        return handlers._response_with_file_attachment_headers(path, answer)

    def log_artifact_from_stream(self, stream, artifact_file_name, artifact_path=None):
        """Store what a binary stream gives."""

        async def chunks():
            while chunk := stream.read(CHUNK):
                yield chunk

        asyncio.run(self.log_artifact_from_async_stream(chunks(), artifact_file_name, artifact_path))

    async def log_artifact_from_async_stream(self, chunks, artifact_file_name, artifact_path=None):
        """Store what CHUNKS gives: at once where it is short, else in parts, and all of it or nothing."""
        path = posixpath.join(artifact_path or "", posixpath.basename(artifact_file_name))
        upload = _Upload(self._get_s3_client(), self._place(path), mimetypes.guess_type(path)[0])
        try:
            async for chunk in chunks:
                await upload.add(chunk)
            await upload.finish()
        except BaseException:
            # also when the client has gone: what came in so far is not the artifact
            await asyncio.shield(asyncio.to_thread(upload.abort))
            raise


class _Upload:
    """One object on its way into the store."""

    def __init__(self, client, place, kind):
        self.client, self.place, self.more = client, place, {"ContentType": kind} if kind else {}
        self.waiting, self.parts, self.upload_id = bytearray(), [], None

    async def add(self, chunk):
        self.waiting += chunk
        if len(self.waiting) >= PART:
            await self._send_part()

    async def finish(self):
        if self.upload_id is None:
            await self._call("put_object", Body=bytes(self.waiting), **self.more)
            return
        if self.waiting:
            await self._send_part()
        done = {"UploadId": self.upload_id, "MultipartUpload": {"Parts": self.parts}}
        await self._call("complete_multipart_upload", **done)
        self.upload_id = None

    def abort(self):
        if self.upload_id is not None:
            self.client.abort_multipart_upload(**self.place, UploadId=self.upload_id)

    async def _send_part(self):
        if self.upload_id is None:
            self.upload_id = (await self._call("create_multipart_upload", **self.more))["UploadId"]
        body, number = bytes(self.waiting), len(self.parts) + 1
        self.waiting.clear()
        sent = await self._call("upload_part", Body=body, UploadId=self.upload_id, PartNumber=number)
        self.parts.append({"PartNumber": number, "ETag": sent["ETag"]})

    async def _call(self, method, **arguments):
        try:
            return await asyncio.to_thread(getattr(self.client, method), **self.place, **arguments)
        except ClientError as error:
            raise _answer(error, self.place["Key"]) from error


def _answer(error, path):
    """What a client is told of the store's refusal."""
    code = error.response["Error"]["Code"]
    if code in MISSING:
        return MlflowException(f"The artifact '{path}' does not exist.", error_code=RESOURCE_DOES_NOT_EXIST)
    if code in OUT_OF_RANGE:
        return invalid(f"The artifact '{path}' has no such range.")
    return MlflowException(f"The object store answered {code}.", error_code=TEMPORARILY_UNAVAILABLE)


def repository_for(artifact_uri, *more, **named):
    """What stands for all kinds of storage that MLflow knows: the lab's place, or the words that it is not one.

    A proxied location is one of the store's for the server itself.
    """
    where = storage()
    is_root = artifact_uri.rstrip("/") == where.root
    return LabRepository(where.root if is_root else where.spellings(where.key(artifact_uri))[0], *more, **named)


def send(repository, path):
    """The response with an artifact of a run, a logged model, a model version or a trace."""
    try:
        return _behind(repository).response(path)
    except MlflowException as error:
        # An artifact of a run may be one of a model that the run has logged under that name.
        if not isinstance(repository, RunsArtifactRepository) or error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        run_id, below = RunsArtifactRepository.parse_runs_uri(f"{repository.artifact_uri}/{path}")
        name, _, rest = below.partition("/")
        model = repository._get_logged_model_artifact_repo(run_id, name)
        if model is None or not rest:
            raise
        return _behind(model).response(rest)


def _behind(repository):
    """The repository in the store to which runs:/ and models:/ lead."""
    while not isinstance(repository, LabRepository):
        repository = repository.repo
    return repository


def install(app):
    """Make the lab's storage the only one, and stream from it."""
    for scheme in list(_artifact_repository_registry._registry):
        if scheme not in INDIRECT:
            _artifact_repository_registry.register(scheme, repository_for)

    replace(handlers, "_send_artifact", lambda _: send)

    def download(original):
        def streamed(artifact_path):
            return handlers._get_artifact_repo_mlflow_artifacts().response(validate_path_is_safe(artifact_path))

        guarded = handlers.catch_mlflow_exception(handlers._disable_unless_serve_artifacts(streamed))
        for endpoint, view in app.view_functions.items():
            if view is original:
                app.view_functions[endpoint] = guarded
        return guarded

    replace(handlers, "_download_artifact", download)
