"""boto3 reads the newest step of a task from an S3 server, as docs/object-layout.md says, and checks every hash.

Usage: s3_pull.py ENDPOINT BUCKET TASK_PREFIX TO    (keys from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)
Prints one JSON object.
"""

import hashlib
import json
import pathlib
import sys

import boto3
from botocore.client import Config


def main():
    endpoint, bucket, prefix, to = sys.argv[1:]
    s3 = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 3}),
    )

    def get(key):
        return s3.get_object(Bucket=bucket, Key=key)["Body"].read()

    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/log/")
    keys = sorted(item["Key"] for page in pages for item in page.get("Contents", []))
    entries = [json.loads(get(key)) for key in keys]
    newest = [entry for entry in entries if entry["kind"] == "step" and entry["publishable"]][-1]

    folder = f"{prefix}/{newest['folder']}"
    manifest_bytes = get(f"{folder}/manifest.json")
    assert hashlib.sha256(manifest_bytes).hexdigest() == newest["manifest_sha256"], "manifest"
    manifest = json.loads(manifest_bytes)

    to = pathlib.Path(to)
    to.mkdir(parents=True, exist_ok=True)
    for file in manifest["files"]:
        body = get(f"{folder}/{file['name']}")
        assert len(body) == file["bytes"], file
        assert hashlib.sha256(body).hexdigest() == file["sha256"], file
        (to / file["name"]).write_bytes(body)
    print(
        json.dumps(
            {
                "log": [entry["seq"] for entry in entries],
                "step": newest["step"],
                "files": sorted(file["name"] for file in manifest["files"]),
            }
        )
    )


main()
