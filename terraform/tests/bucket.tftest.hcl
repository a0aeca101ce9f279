mock_provider "openstack" {}

run "makes_a_private_versioned_bucket" {
  module {
    source = "./modules/bucket"
  }

  command = plan

  variables {
    name = "mylab-mlflow"
  }

  assert {
    condition     = openstack_objectstorage_container_v1.artifacts[0].versioning == true
    error_message = "earlier versions of artifacts are kept"
  }

  assert {
    condition     = try(openstack_objectstorage_container_v1.artifacts[0].container_read, null) == null && openstack_objectstorage_container_v1.artifacts[0].force_destroy != true
    error_message = "nobody outside the project reads it, and it is never destroyed with its content"
  }
}

run "takes_a_bucket_that_exists" {
  module {
    source = "./modules/bucket"
  }

  command = plan

  variables {
    name   = "mylab-mlflow"
    manage = false
  }

  assert {
    condition     = length(openstack_objectstorage_container_v1.artifacts) == 0 && output.name == "mylab-mlflow"
    error_message = "a bucket that exists is named, not made"
  }
}

run "refuses_a_name_that_s3_refuses" {
  module {
    source = "./modules/bucket"
  }

  command = plan

  variables {
    name = "My_Bucket"
  }

  expect_failures = [var.name]
}
