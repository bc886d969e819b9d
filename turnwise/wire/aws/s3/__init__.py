"""S3's REST-XML, path-style: buckets, objects, multipart uploads."""
