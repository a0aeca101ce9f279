# What a run that was killed has made and could not write down, or what a lost state knew, is taken over instead of made
# twice.  playbooks/provision.yml finds it by name and passes the ids; a resource that the state knows is left alone.

locals {
  makes = concat(
    ["security_group", "port", "server"],
    module.network.makes,
    local.lab.lab_key_pair == null ? ["key_pair"] : [],
    local.lab.lab_floating_ip == null ? ["floating_ip"] : [],
    local.lab.lab_data_volume == "none" ? [] : ["attachment"],
    local.lab.lab_data_volume == "manage" ? ["volume"] : [],
    local.lab.lab_bucket_manage ? ["bucket"] : [],
  )
  adopt = { for name, id in var.adopt : name => id if contains(local.makes, name) }
}

import {
  for_each = { for name, id in local.adopt : name => id if name == "network" }
  to       = module.network.openstack_networking_network_v2.lab[0]
  id       = each.value
}

import {
  for_each = { for name, id in local.adopt : name => id if name == "subnet" }
  to       = module.network.openstack_networking_subnet_v2.lab[0]
  id       = each.value
}

import {
  for_each = { for name, id in local.adopt : name => id if name == "router" }
  to       = module.network.openstack_networking_router_v2.lab[0]
  id       = each.value
}

import {
  for_each = { for name, id in local.adopt : name => id if name == "router_interface" }
  to       = module.network.openstack_networking_router_interface_v2.lab[0]
  id       = each.value
}

import {
  for_each = { for name, id in local.adopt : name => id if name == "security_group" }
  to       = module.network.openstack_networking_secgroup_v2.server
  id       = each.value
}

import {
  # "rule 22 from 192.0.2.0/24"
  for_each = { for name, id in local.adopt : trimprefix(name, "rule ") => id if startswith(name, "rule ") }
  to       = module.network.openstack_networking_secgroup_rule_v2.in[each.key]
  id       = each.value
}

import {
  for_each = { for name, id in local.adopt : name => id if name == "key_pair" }
  to       = module.server.openstack_compute_keypair_v2.admin[0]
  id       = each.value
}

import {
  for_each = { for name, id in local.adopt : name => id if name == "port" }
  to       = module.server.openstack_networking_port_v2.server
  id       = each.value
}

import {
  for_each = { for name, id in local.adopt : name => id if name == "server" }
  to       = module.server.openstack_compute_instance_v2.server
  id       = each.value
}

import {
  for_each = { for name, id in local.adopt : name => id if name == "floating_ip" }
  to       = module.server.openstack_networking_floatingip_v2.server[0]
  id       = each.value
}

import {
  for_each = { for name, id in local.adopt : name => id if name == "volume" }
  to       = module.server.openstack_blockstorage_volume_v3.data[0]
  id       = each.value
}

import {
  for_each = { for name, id in local.adopt : name => id if name == "attachment" }
  to       = module.server.openstack_compute_volume_attach_v2.data[0]
  id       = each.value
}

import {
  for_each = { for name, id in local.adopt : name => id if name == "bucket" }
  to       = module.bucket.openstack_objectstorage_container_v1.artifacts[0]
  id       = each.value
}
