# The root module, fed by lab.yml as a lab feeds it; the cloud is a mock.
# Plans only: what the lab must never lose has prevent_destroy, which the end of a test could not take away either.

mock_provider "openstack" {
  mock_data "openstack_identity_auth_scope_v3" {
    defaults = { project_id = "0123456789abcdef0123456789abcdef", project_name = "climate" }
  }
}

run "a_lab_with_nothing_makes_everything" {
  command = plan

  variables {
    lab_file = "tests/labs/minimal/lab.json"
  }

  assert {
    condition     = output.url == "https://mlflow.minimal.test" && output.bucket == "minimal-mlflow"
    error_message = "url and bucket come from lab.yml; they are ${output.url} and ${output.bucket}"
  }

  assert {
    condition     = module.server.data_volume_id == ""
    error_message = "without lab_data_volume, PostgreSQL stays on the machine's disk"
  }

}

run "a_lab_that_has_things_takes_them" {
  command = plan

  variables {
    lab_file = "tests/labs/everything/lab.json"
  }

  assert {
    condition     = output.hosts.server.address == "198.51.100.99" && output.hosts.server.user == "rocky"
    error_message = "the given floating IP is the server's address, and the given account its account"
  }

  assert {
    condition     = output.bucket == "everything-mlflow"
    error_message = "a bucket that exists is named, not made"
  }
}

run "the_project_of_the_inventory_is_accepted" {
  command = plan

  variables {
    lab_file         = "tests/labs/minimal/lab.json"
    expected_project = "0123456789abcdef0123456789abcdef"
  }
}

run "another_project_than_the_inventory_s_is_refused" {
  command = plan

  variables {
    lab_file         = "tests/labs/minimal/lab.json"
    expected_project = "ffffffffffffffffffffffffffffffff"
  }

  expect_failures = [data.openstack_identity_auth_scope_v3.login]
}

run "a_file_that_is_not_there_is_refused" {
  command = plan

  variables {
    lab_file = "tests/labs/nobody/lab.json"
  }

  expect_failures = [var.lab_file]
}
