mock_provider "openstack" {}

variables {
  name             = "mylab"
  fqdn             = "mlflow.mylab.test"
  image_id         = "11111111-1111-1111-1111-111111111111"
  flavor_id        = "99999999-9999-9999-9999-999999999999"
  floating_ip      = "198.51.100.99"
  public_keys      = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGQw8R6tC6vS1bSdnWmJqZ4m0hXcV7Tn3Yp2bK5fLxq1 ada"]
  external_network = "Public-Network"
  network = {
    network_id         = "22222222-2222-2222-2222-222222222222"
    subnet_id          = "33333333-3333-3333-3333-333333333333"
    security_group_ids = ["44444444-4444-4444-4444-444444444444"]
  }
}

run "boots_from_a_volume_where_asked" {
  module {
    source = "./modules/server"
  }

  command = plan

  variables {
    boot_volume_gb = 30
  }

  assert {
    condition     = one(openstack_compute_instance_v2.server.block_device).volume_size == 30
    error_message = "the boot volume has the size that lab.yml says"
  }
}

run "makes_a_machine_with_a_config_drive_and_no_secret" {
  module {
    source = "./modules/server"
  }

  command = apply

  assert {
    condition     = openstack_compute_instance_v2.server.config_drive
    error_message = "the metadata service is unreliable on some clouds"
  }

  assert {
    condition     = keys(yamldecode(templatefile("modules/server/templates/user_data.yml.tftpl", { fqdn = var.fqdn, public_keys = var.public_keys }))) == ["disable_root", "fqdn", "ssh", "ssh_authorized_keys", "ssh_pwauth"]
    error_message = "user data has the name and the public keys, and nothing that could be secret"
  }

  assert {
    condition     = length(openstack_networking_floatingip_v2.server) == 0
    error_message = "a given floating IP is used, none is made"
  }
}

run "a_newer_image_plans_nothing" {
  module {
    source = "./modules/server"
  }

  command = plan

  variables {
    image_id = "55555555-5555-5555-5555-555555555555"
    fqdn     = "other.mylab.test"
  }

  assert {
    condition     = openstack_compute_instance_v2.server.image_id == "11111111-1111-1111-1111-111111111111"
    error_message = "a changed image must not replace a running server; image_id would become ${openstack_compute_instance_v2.server.image_id}"
  }

  assert {
    # of a server that is to be replaced, the id would not be known
    condition     = openstack_compute_instance_v2.server.id != ""
    error_message = "the server stays the same machine"
  }
}

run "makes_the_data_volume_apart_from_the_machine" {
  module {
    source = "./modules/server"
  }

  command = plan

  variables {
    data_volume    = "manage"
    data_volume_gb = 50
  }

  assert {
    condition     = openstack_blockstorage_volume_v3.data[0].size == 50 && length(openstack_compute_volume_attach_v2.data) == 1
    error_message = "a managed volume is made and attached"
  }
}

run "attaches_a_volume_that_exists" {
  module {
    source = "./modules/server"
  }

  command = plan

  variables {
    data_volume = "66666666-6666-6666-6666-666666666666"
  }

  assert {
    condition     = length(openstack_blockstorage_volume_v3.data) == 0 && openstack_compute_volume_attach_v2.data[0].volume_id == "66666666-6666-6666-6666-666666666666"
    error_message = "a given volume is attached, none is made"
  }
}

run "makes_a_floating_ip_where_none_is_given" {
  module {
    source = "./modules/server"
  }

  command = plan

  variables {
    floating_ip = ""
  }

  assert {
    condition     = openstack_networking_floatingip_v2.server[0].pool == "Public-Network"
    error_message = "the address comes from the external network"
  }
}

run "refuses_an_empty_image" {
  module {
    source = "./modules/server"
  }

  command = plan
  variables { image_id = "" }
  expect_failures = [var.image_id]
}

run "refuses_an_empty_flavor" {
  module {
    source = "./modules/server"
  }

  command = plan
  variables { flavor_id = "" }
  expect_failures = [var.flavor_id]
}

run "refuses_a_boot_volume_too_small_for_debian" {
  module {
    source = "./modules/server"
  }

  command = plan
  variables { boot_volume_gb = 4 }
  expect_failures = [var.boot_volume_gb]
}

run "refuses_a_data_volume_that_is_no_name" {
  module {
    source = "./modules/server"
  }

  command = plan
  variables { data_volume = "" }
  expect_failures = [var.data_volume]
}

run "refuses_half_a_gigabyte" {
  module {
    source = "./modules/server"
  }

  command = plan
  variables { data_volume_gb = 7.5 }
  expect_failures = [var.data_volume_gb]
}

run "refuses_an_address_that_is_none" {
  module {
    source = "./modules/server"
  }

  command = plan
  variables { floating_ip = "mlflow.mylab.test" }
  expect_failures = [var.floating_ip]
}

run "refuses_a_machine_that_nobody_could_log_in_to" {
  module {
    source = "./modules/server"
  }

  command = plan
  variables { public_keys = [] }
  expect_failures = [var.public_keys]
}

run "hands_nova_a_key_that_it_takes" {
  module {
    source = "./modules/server"
  }

  command = plan
  variables { public_keys = ["sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fAAAABHNzaDo= token", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGQw8R6tC6vS1bSdnWmJqZ4m0hXcV7Tn3Yp2bK5fLxq1 ada"] }

  assert {
    condition     = one(openstack_compute_keypair_v2.admin[*].public_key) == var.public_keys[1]
    error_message = "Nova refuses a security token's key, which opens the machine all the same"
  }
}

run "needs_no_key_pair_where_all_keys_are_on_tokens" {
  module {
    source = "./modules/server"
  }

  command = plan
  variables { public_keys = ["sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fAAAABHNzaDo= token"] }

  assert {
    condition     = length(openstack_compute_keypair_v2.admin) == 0
    error_message = "user data has the keys; a key pair is only for Nova's own lists"
  }
}
