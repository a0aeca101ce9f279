mock_provider "openstack" {}

variables {
  name                = "mylab"
  external_network_id = "77777777-7777-7777-7777-777777777777"
  cidr                = "10.20.0.0/24"
  admin_networks      = ["192.0.2.0/24", "2001:db8::/32"]
}

run "makes_a_network_with_a_way_out" {
  module {
    source = "./modules/network"
  }

  command = apply

  assert {
    condition     = length(openstack_networking_router_interface_v2.lab) == 1 && length(openstack_networking_router_v2.lab) == 1
    error_message = "a network that is made gets a router"
  }
}

run "opens_web_to_all_and_ssh_to_admins_and_nothing_else" {
  module {
    source = "./modules/network"
  }

  command = plan

  assert {
    condition = toset([for r in openstack_networking_secgroup_rule_v2.in : "${r.port_range_min}-${r.port_range_max} ${r.protocol} ${r.ethertype} ${r.remote_ip_prefix}"]) == toset([
      "80-80 tcp IPv4 0.0.0.0/0", "80-80 tcp IPv6 ::/0",
      "443-443 tcp IPv4 0.0.0.0/0", "443-443 tcp IPv6 ::/0",
      "22-22 tcp IPv4 192.0.2.0/24", "22-22 tcp IPv6 2001:db8::/32",
    ])
    error_message = "the rules are ${jsonencode([for r in openstack_networking_secgroup_rule_v2.in : "${r.port_range_min} ${r.remote_ip_prefix}"])}"
  }

  assert {
    condition     = alltrue([for r in openstack_networking_secgroup_rule_v2.in : r.direction == "ingress"])
    error_message = "only ways in are opened; Neutron's own rules let the machine out"
  }
}

run "takes_the_router_that_a_quota_of_one_leaves" {
  module {
    source = "./modules/network"
  }

  command = plan

  variables {
    router_id = "88888888-8888-8888-8888-888888888888"
  }

  assert {
    condition     = length(openstack_networking_router_v2.lab) == 0 && openstack_networking_router_interface_v2.lab[0].router_id == "88888888-8888-8888-8888-888888888888"
    error_message = "a router that exists is joined, none is made"
  }
}

run "takes_a_network_that_exists" {
  module {
    source = "./modules/network"
  }

  command = plan

  variables {
    network_id = "6f0f6a3e-8f0e-4f34-9d2f-0a1b2c3d4e5f"
  }

  assert {
    condition     = length(openstack_networking_network_v2.lab) + length(openstack_networking_subnet_v2.lab) + length(openstack_networking_router_v2.lab) == 0
    error_message = "with a network that exists, no network, subnet or router is made"
  }

  assert {
    condition     = output.ready.network_id == "6f0f6a3e-8f0e-4f34-9d2f-0a1b2c3d4e5f"
    error_message = "the machine's port goes into the given network"
  }
}

run "refuses_ssh_for_everybody" {
  module {
    source = "./modules/network"
  }

  command = plan

  variables {
    admin_networks = ["0.0.0.0/0"]
  }

  expect_failures = [var.admin_networks]
}

run "refuses_an_admin_network_that_is_none" {
  module {
    source = "./modules/network"
  }

  command = plan

  variables {
    admin_networks = ["my office"]
  }

  expect_failures = [var.admin_networks]
}

run "refuses_no_admin_network_at_all" {
  module {
    source = "./modules/network"
  }

  command = plan

  variables {
    admin_networks = []
  }

  expect_failures = [var.admin_networks]
}

run "refuses_a_range_that_is_none" {
  module {
    source = "./modules/network"
  }

  command = plan

  variables {
    cidr = "10.20.0.0"
  }

  expect_failures = [var.cidr]
}

run "refuses_a_router_for_a_network_that_has_its_own" {
  module {
    source = "./modules/network"
  }

  command = plan

  variables {
    network_id = "6f0f6a3e-8f0e-4f34-9d2f-0a1b2c3d4e5f"
    router_id  = "88888888-8888-8888-8888-888888888888"
  }

  expect_failures = [var.router_id]
}
